//! The daemon as a library: engines that join the rooms, control API, configuration.
#![forbid(unsafe_code)]

pub mod engine;
