//! An old copy of some files, to be put back later.
//!
//! Owns the bytes as a reader saw them at one instant. What is put back is durable at once, as a
//! restore that was waited for; what a dead process has in flight may still land on it.

use super::disk::DiskShape;
use super::pages::Pages;
use super::storage::Storage;
use super::world::NodeId;
use std::path::PathBuf;

#[derive(Debug, Clone)]
struct File {
    path: PathBuf,
    shape: DiskShape,
    bytes: Pages,
    /// The order of its last write.
    order: u64,
}

/// Some files and devices of a host as they were.
#[derive(Debug, Clone)]
pub struct Backup {
    files: Vec<File>,
}

impl Backup {
    pub(super) fn of(storage: &Storage, node: NodeId, paths: &[PathBuf]) -> Self {
        let names = storage.names(node);
        let wanted = names.filter(|(path, _)| paths.iter().any(|wanted| wanted == path));
        let files = wanted.map(|(path, id)| {
            let disk = &storage.stores[id].disk;
            File {
                path: path.to_owned(),
                shape: disk.shape,
                bytes: disk.view().clone(),
                order: disk.completed(),
            }
        });
        Self {
            files: files.collect(),
        }
    }

    /// What it has, sorted.
    #[must_use]
    pub fn paths(&self) -> Vec<PathBuf> {
        self.files.iter().map(|file| file.path.clone()).collect()
    }

    pub(super) fn restore(&self, storage: &mut Storage, node: NodeId) {
        for file in &self.files {
            if storage.find(node, &file.path).is_none() {
                storage.place(node, &file.path, file.shape, 0);
            }
            let id = storage.find(node, &file.path).expect("just placed");
            let disk = &mut storage.stores[id].disk;
            disk.restore(file.bytes.clone(), file.order);
            storage.name_durably(id);
        }
    }
}
