//! May this replica be promoted?

use blkrep_types::DataState;

/// What was asked for, and what is the case.
#[derive(Debug, Clone, Copy)]
pub struct PromoteRequest {
    /// The source is connected.
    pub connected: bool,
    /// What the data is worth once everything in the journal is applied.
    pub state: DataState,
    /// The operator says that the source may be alive.
    pub force: bool,
    /// The operator takes data that is no state the source ever had.
    pub inconsistent: bool,
}

/// Why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PromoteRefusal {
    /// The source is connected.
    #[error("the source is connected and serves the group; stop it, or promote with --force")]
    SourceAlive,
    /// The data is no prefix.
    #[error(
        "the replica is {0}: its data is not a state that the source ever had; wait for the mirror, or promote with --inconsistent --yes"
    )]
    NotOk(DataState),
    /// There is no data.
    #[error("nothing has been replicated here yet")]
    Nothing,
}

/// Judges a promotion.
///
/// # Errors
/// Why not, and what to do.
pub const fn check_promote(request: &PromoteRequest) -> Result<(), PromoteRefusal> {
    if request.connected && !request.force {
        return Err(PromoteRefusal::SourceAlive);
    }
    match request.state {
        DataState::Ok => Ok(()),
        DataState::NotReady => Err(PromoteRefusal::Nothing),
        DataState::Mirroring
        | DataState::MirrorRequired
        | DataState::RestoreRequired
        | DataState::Reverted
        | DataState::Unknown => {
            if request.inconsistent {
                Ok(())
            } else {
                Err(PromoteRefusal::NotOk(request.state))
            }
        }
    }
}
