//! The worker and the acceptor over the simulated twins, against a scripted source.

#![allow(clippy::unwrap_used)]

mod campaign;
mod decay;
mod faults;
mod notes;
mod reading;
mod replacing;
mod retrying;
mod rig;
mod rot;
mod rules;
mod several;
mod source;
