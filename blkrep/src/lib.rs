//! The daemon as a library: engines that join the rooms, control API, configuration.
#![forbid(unsafe_code)]

pub mod config;
pub mod control;
pub mod daemon;
mod doctor;
pub mod engine;
pub mod events;
mod files;
pub mod left_behind;
pub mod logging;
pub mod node;
pub mod settings;
pub mod trust;
mod twin;
pub mod udev;
