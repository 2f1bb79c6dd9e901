//! A group whose backing failed, handed to the target of one of its links.
//!
//! Owns the order: the log is kept for the link first, then the record says that the backings are lost,
//! durably, and only then is anything answered that way. What was begun and did not come to that is taken
//! back. See ADR 12.

use super::OpenError;
use super::group::SourceShared;
use blkrep_core::source::LinkIndex;
use blkrep_io::Host;
use blkrep_types::LinkName;

impl<H: Host> SourceShared<H> {
    /// From now on the target of this link serves the group, whatever its backings say, also after a
    /// restart: until the group was taken over elsewhere.
    ///
    /// # Errors
    /// The group does not wait for its backing, the link cannot serve it, or the record could not be
    /// written: nothing has changed then.
    pub fn serve_from(&self, name: &LinkName) -> Result<(), OpenError> {
        let index = self.find(name)?;
        let pinned = self.command(|state| state.group.pin(index));
        pinned.map_err(|why| OpenError::Command(why.as_str().to_owned()))?;
        let place = u8::try_from(index.as_usize()).expect("few links");
        if let Err(error) = self.record(|record| record.served_by = Some(place)) {
            self.command(|state| state.group.unpin());
            return Err(error);
        }
        let still = self.command(|state| state.group.still_serves(index));
        // Nothing was answered that way yet. If even that cannot be written, what the record says holds.
        if !still && self.record(|record| record.served_by = None).is_ok() {
            self.command(|state| state.group.unpin());
            let text = "the target was lost while the group was handed to it";
            return Err(OpenError::Command(text.to_owned()));
        }
        self.command(|state| state.group.serve_from(index));
        Ok(())
    }

    /// The link whose target serves the group because its backings are lost, if so.
    #[must_use]
    pub fn served_by(&self) -> Option<LinkName> {
        let admin = self.admin();
        let place = admin.record.served_by?;
        let mut links = admin.record.links.iter();
        let link = links.find(|link| link.place == place);
        link.map(|link| link.name.clone())
    }

    /// Refuses what needs a backing, or would end the one copy there is.
    pub(super) fn refuse_lost(&self, what: &str, of: Option<LinkIndex>) -> Result<(), OpenError> {
        let served = self.admin().record.served_by.map(usize::from);
        let concerned = match (served, of) {
            (Some(place), Some(link)) => link.as_usize() == place,
            (served, None) => served.is_some(),
            (None, Some(_)) => false,
        };
        if !concerned {
            return Ok(());
        }
        Err(OpenError::Command(format!(
            "{what}: the backing of the group is lost and a target serves it; promote the group there first"
        )))
    }
}
