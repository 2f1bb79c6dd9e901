//! What the workspace is tested with: an order checker, and guests with a real kernel to run tests in.
//!
//! Owns harness and judges. Never shipped, and never decides how the product works.

#![forbid(unsafe_code)]

pub mod guest;
pub mod inside;

pub use blkrep_order as order;
