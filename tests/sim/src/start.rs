//! Why a simulated daemon did not start.

/// What became of an attempt to start a daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartError {
    /// A dead predecessor's writes have not landed, or a disk failed: to be tried again.
    Busy(String),
    /// It never will.
    Failed(String),
}
