//! What must survive a restart of `sync`: the operator's device key, what it has written, and which approvals it has
//! seen. One folder a gateway, files readable by their owner only, replaced as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::api::validated::ValidatedApproval;
use crate::api::{DeviceApprovalSpec, ObjectKey};
use crate::cidr::Prefix;
use crate::gateway::Identity;
use crate::gateway::identity::IdentityError;

/// Why the state folder cannot be used.
#[derive(Debug, Error)]
pub enum StateError {
    /// It cannot be read or written.
    #[error("the state folder's {0}: {1}")]
    Io(PathBuf, #[source] std::io::Error),
    /// The device key is readable by others.
    #[error("{0} may be read by others (mode {1:o}): it holds the operator's private key. chmod 600 {0}")]
    Exposed(String, u32),
    /// The device key is damaged.
    #[error("{0}: {1}")]
    Identity(String, #[source] IdentityError),
    /// The notes are damaged.
    #[error(
        "{0} cannot be read ({1}). Without it, it is not known which devices to revoke: restore it, or delete it to start anew"
    )]
    Notes(PathBuf, #[source] serde_json::Error),
}

/// The notes of one gateway.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Notes {
    /// Prefixes that are the operator's own.
    owned: BTreeSet<String>,
    /// Approvals that were seen, by `namespace/name`.
    approvals: BTreeMap<String, DeviceApprovalSpec>,
}

/// The state folder.
#[derive(Debug)]
pub struct State {
    folder: PathBuf,
    notes: BTreeMap<ObjectKey, Notes>,
    saved: BTreeMap<ObjectKey, Notes>,
}

impl State {
    /// Opens the folder; makes it (mode 0700) where it is missing.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn open(folder: &Path) -> Result<Self, StateError> {
        make_folder(folder)?;
        Ok(Self {
            folder: folder.to_owned(),
            notes: BTreeMap::new(),
            saved: BTreeMap::new(),
        })
    }

    /// The folder of one gateway.
    pub fn folder_of(&self, gateway: &ObjectKey) -> PathBuf {
        // Neither part can hold a separator in Kubernetes; a file could have written anything.
        let plain = |text: &str| {
            text.chars()
                .map(|letter| {
                    if letter.is_ascii_alphanumeric() || letter == '-' {
                        letter
                    } else {
                        '_'
                    }
                })
                .collect::<String>()
        };
        self.folder
            .join(format!("{}.{}", plain(&gateway.namespace), plain(&gateway.name)))
    }

    /// The operator's device for this gateway; a new one where there is none.
    ///
    /// # Errors
    /// [`StateError`]: a damaged or exposed key is never replaced silently.
    pub fn identity(&self, gateway: &ObjectKey) -> Result<Identity, StateError> {
        let folder = self.folder_of(gateway);
        let file = folder.join("device.key");
        let shown = file.display().to_string();
        match std::fs::read_to_string(&file) {
            Ok(text) => {
                let mode = std::fs::metadata(&file)
                    .map_err(|error| StateError::Io(file.clone(), error))?
                    .permissions()
                    .mode()
                    & 0o777;
                if mode & 0o077 != 0 {
                    return Err(StateError::Exposed(shown, mode));
                }
                Identity::from_secret(&text).map_err(|error| StateError::Identity(shown, error))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let identity = Identity::generate().map_err(|error| StateError::Identity(shown, error))?;
                make_folder(&folder)?;
                replace(&file, identity.secret().as_bytes())?;
                Ok(identity)
            }
            Err(error) => Err(StateError::Io(file, error)),
        }
    }

    fn notes(&mut self, gateway: &ObjectKey) -> Result<&mut Notes, StateError> {
        if !self.notes.contains_key(gateway) {
            let file = self.folder_of(gateway).join("notes.json");
            let notes = match std::fs::read(&file) {
                Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| StateError::Notes(file, error))?,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Notes::default(),
                Err(error) => return Err(StateError::Io(file, error)),
            };
            self.saved.insert(gateway.clone(), notes.clone());
            self.notes.insert(gateway.clone(), notes);
        }
        Ok(self.notes.entry(gateway.clone()).or_default())
    }

    /// The prefixes that are the operator's own.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn owned(&mut self, gateway: &ObjectKey) -> Result<BTreeSet<Prefix>, StateError> {
        Ok(self
            .notes(gateway)?
            .owned
            .iter()
            .filter_map(|text| Prefix::parse(text).ok())
            .collect())
    }

    /// Remembers the prefixes that are the operator's own.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn remember(&mut self, gateway: &ObjectKey, owned: &BTreeSet<Prefix>) -> Result<(), StateError> {
        self.notes(gateway)?.owned = owned.iter().map(Prefix::to_string).collect();
        self.save(gateway)
    }

    /// Notes an approval, so that its going will be noticed. [`State::save`] puts it on disk.
    pub fn note_approval(&mut self, gateway: &ObjectKey, approval: &ObjectKey, spec: &DeviceApprovalSpec) {
        let Ok(notes) = self.notes(gateway) else { return };
        let device = |spec: &DeviceApprovalSpec| {
            ValidatedApproval::parse_for_removal(spec)
                .map(|approval| approval.device)
                .ok()
        };
        if let Some(old) = notes.approvals.insert(approval.to_string(), spec.clone())
            && let (Some(before), Some(after)) = (device(&old), device(spec))
            && before != after
        {
            // The file names another device now. For the one before, that is a deletion; `~` stands in no real name.
            notes.approvals.insert(format!("{approval}~{}", before.short()), old);
        }
    }

    /// The approvals that were seen.
    pub fn approvals(&mut self, gateway: &ObjectKey) -> Vec<(ObjectKey, DeviceApprovalSpec)> {
        let Ok(notes) = self.notes(gateway) else {
            return Vec::new();
        };
        let parse = |text: &str| {
            text.split_once('/')
                .map(|(namespace, name)| ObjectKey::new(namespace, name))
        };
        notes
            .approvals
            .iter()
            .filter_map(|(key, spec)| Some((parse(key)?, spec.clone())))
            .collect()
    }

    /// Whether an approval's note is on disk.
    pub fn is_on_disk(&self, gateway: &ObjectKey, approval: &ObjectKey) -> bool {
        self.saved
            .get(gateway)
            .is_some_and(|notes| notes.approvals.contains_key(&approval.to_string()))
    }

    /// Forgets an approval: nothing of it is left to be revoked.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn forget(&mut self, gateway: &ObjectKey, approval: &ObjectKey) -> Result<(), StateError> {
        self.notes(gateway)?.approvals.remove(&approval.to_string());
        self.save(gateway)
    }

    /// Puts the notes of a gateway on disk, if they have changed.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn save(&mut self, gateway: &ObjectKey) -> Result<(), StateError> {
        let notes = self.notes(gateway)?.clone();
        if self.saved.get(gateway) == Some(&notes) {
            return Ok(());
        }
        let folder = self.folder_of(gateway);
        make_folder(&folder)?;
        let file = folder.join("notes.json");
        let text = serde_json::to_vec_pretty(&notes).map_err(|error| StateError::Notes(file.clone(), error))?;
        replace(&file, &text)?;
        self.saved.insert(gateway.clone(), notes);
        Ok(())
    }
}

fn make_folder(folder: &Path) -> Result<(), StateError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|error| StateError::Io(folder.to_owned(), error))
}

/// Writes a file as a whole or not at all, readable by its owner only.
///
/// # Errors
/// [`StateError::Io`].
pub fn replace(file: &Path, bytes: &[u8]) -> Result<(), StateError> {
    let io = |error| StateError::Io(file.to_owned(), error);
    let new = file.with_extension("new");
    let mut handle = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)
        .map_err(io)?;
    handle.write_all(bytes).and_then(|()| handle.sync_all()).map_err(io)?;
    std::fs::rename(&new, file).map_err(io)
}
