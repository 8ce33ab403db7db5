//! Through `gatewaytrust sync` on a folder of the same YAML.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Of, Runner, TRUST};
use crate::harness::Operator;
use crate::harness::process::scratch;

const NAMESPACE: &str = "e2e";

pub struct Folder {
    dir: TempDir,
}

impl Folder {
    pub fn new() -> Self {
        let folder = Self { dir: scratch("folder") };
        for path in [folder.git(), folder.secrets().join("credentials")] {
            std::fs::create_dir_all(path).expect("making a folder");
        }
        folder
    }

    pub fn git(&self) -> PathBuf {
        self.dir.path().join("git")
    }

    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub fn secrets(&self) -> PathBuf {
        self.dir.path().join("secrets")
    }

    pub fn start(&self) -> Runner {
        let (git, state, secrets) = (self.git(), self.state(), self.secrets());
        Runner::new(move || {
            let secrets = secrets.to_str().expect("a folder's name in UTF-8");
            Operator::sync(&git, &state, &[], &["--secrets-dir", secrets])
        })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.git().join(format!("{name}.yaml"))
    }

    pub fn write(&self, kind: &str, name: &str, spec: Value) {
        let document = json!({
            "apiVersion": "gatewaytrust.io/v1alpha1", "kind": kind,
            "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec,
        });
        let text = serde_saphyr::to_string(&document).expect("YAML");
        // As `git pull` does: a whole new file in the old one's place.
        let new = self.git().join(format!(".{name}.new"));
        std::fs::write(&new, text).expect("writing a file");
        std::fs::rename(new, self.file(name)).expect("renaming a file");
    }

    pub fn remove(&self, name: &str) {
        std::fs::remove_file(self.file(name)).expect("removing a file");
    }

    /// The file `credentials/KEY`, as a mounted Secret has it.
    pub fn secret(&self, key: &str, value: Option<&str>) {
        let file = self.secrets().join("credentials").join(key);
        match value {
            Some(value) => std::fs::write(file, value).expect("writing a secret"),
            None => std::fs::remove_file(file).expect("removing a secret"),
        }
    }

    fn own(&self, file: &str) -> PathBuf {
        self.state().join(format!("{NAMESPACE}.{TRUST}")).join(file)
    }

    pub fn status(&self, of: Of<'_>) -> Value {
        let Ok(text) = std::fs::read_to_string(self.own("status.yaml")) else {
            return Value::Null;
        };
        let mut document: Value = serde_saphyr::from_str(&text).expect("YAML");
        match of {
            Of::Gateway => document["gatewayTrust"]["status"].take(),
            Of::Approval(name) => document["deviceApprovals"][format!("{NAMESPACE}/{name}")].take(),
        }
    }

    /// What it keeps besides its key, which nobody else may read.
    pub fn everything_shown(&self) -> String {
        let read = |name| std::fs::read_to_string(self.own(name)).unwrap_or_default();
        read("status.yaml") + &read("notes.json")
    }

    pub fn device_key(&self) -> Option<String> {
        let file = self.own("device.key");
        let key = std::fs::read_to_string(&file).ok()?;
        assert_eq!(mode(&file), 0o600, "the key is readable by others");
        Some(key.trim().to_owned())
    }
}

fn mode(file: &Path) -> u32 {
    let metadata = std::fs::metadata(file).expect("a file");
    metadata.permissions().mode() & 0o777
}
