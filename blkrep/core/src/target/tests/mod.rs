//! A model that crashes, and the rules one by one.

#![allow(clippy::unwrap_used)]

mod model;
mod retry;
mod rules;
