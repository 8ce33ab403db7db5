//! Reads the folder: files in, our two resources out, and a sentence for each file that cannot be used.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::api::{DeviceApproval, GatewayTrust, ObjectKey};
use crate::cluster::dump::Dump;

/// Files larger than this are not read: one approval is some 400 bytes.
const FILE_LIMIT: u64 = 16 << 20;
/// Most files of one folder.
const FILES_LIMIT: usize = 20_000;
/// The namespace of an object that names none.
const DEFAULT_NAMESPACE: &str = "default";

/// What the folder says.
#[derive(Debug, Default)]
pub struct Scan {
    /// The gateways.
    pub trusts: BTreeMap<ObjectKey, GatewayTrust>,
    /// The approvals.
    pub approvals: BTreeMap<ObjectKey, DeviceApproval>,
    /// Files that cannot be used, one sentence each. While there is one, nothing counts as deleted.
    pub problems: Vec<String>,
}

impl Scan {
    /// The approvals that refer to a gateway.
    pub fn approvals_of<'a>(
        &'a self,
        gateway: &'a ObjectKey,
    ) -> impl Iterator<Item = (&'a ObjectKey, &'a DeviceApproval)> {
        self.approvals.iter().filter(move |(key, approval)| {
            key.namespace == gateway.namespace && approval.spec.gateway_trust_ref.name == gateway.name
        })
    }

    /// Approvals that refer to a gateway that is not there.
    pub fn orphans(&self, trusts: &BTreeMap<ObjectKey, GatewayTrust>) -> Vec<(ObjectKey, String)> {
        let reference = |key: &ObjectKey, approval: &DeviceApproval| {
            ObjectKey::new(&key.namespace, &approval.spec.gateway_trust_ref.name)
        };
        let all = self
            .approvals
            .iter()
            .map(|(key, approval)| (key.clone(), reference(key, approval)));
        all.filter(|(_, reference)| !trusts.contains_key(reference))
            .map(|(key, reference)| (key, reference.name))
            .collect()
    }
}

/// Reads every `.yaml`, `.yml` and `.json` below the folder, hidden names left out.
pub fn read(folder: &Path) -> Scan {
    let mut scan = Scan::default();
    let mut files = Vec::new();
    collect(folder, &mut files, &mut scan.problems, 0);
    files.sort();
    for file in files {
        let shown = file.strip_prefix(folder).unwrap_or(&file).display().to_string();
        if let Err(problem) = read_file(&file, &shown, &mut scan) {
            scan.problems.push(problem);
        }
    }
    scan
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>, problems: &mut Vec<String>, depth: usize) {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) if depth < 16 => entries,
        Ok(_) => return problems.push(format!("{}: folders are nested too deep", folder.display())),
        Err(error) => return problems.push(format!("{}: {error}", folder.display())),
    };
    for entry in entries {
        let Ok(entry) = entry else {
            problems.push(format!("{}: an entry cannot be read", folder.display()));
            continue;
        };
        let path = entry.path();
        // Hidden names are editors' files and the `..data` folders of a mounted ConfigMap, whose files are linked.
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        let is_yaml = path
            .extension()
            .is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known));
        match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() && !entry.file_type().is_ok_and(|kind| kind.is_symlink()) => {
                collect(&path, files, problems, depth + 1)
            }
            Ok(metadata) if metadata.is_file() && is_yaml => {
                if files.len() >= FILES_LIMIT {
                    return problems.push(format!("more than {FILES_LIMIT} files"));
                }
                files.push(path);
            }
            Ok(_) => {}
            Err(error) if is_yaml => problems.push(format!("{}: {error}", path.display())),
            Err(_) => {}
        }
    }
}

fn read_file(file: &Path, shown: &str, scan: &mut Scan) -> Result<(), String> {
    let metadata = std::fs::metadata(file).map_err(|error| format!("{shown}: {error}"))?;
    if metadata.len() > FILE_LIMIT {
        return Err(format!("{shown}: larger than {} MiB", FILE_LIMIT >> 20));
    }
    let text = std::fs::read_to_string(file).map_err(|error| format!("{shown}: {error}"))?;
    let mut dump = Dump::default();
    dump.add(shown, &text).map_err(|error| error.to_string())?;
    if dump.trusts.is_empty() && dump.approvals.is_empty() && dump.ignored.is_empty() && !dump.snapshot.exists {
        // Editors empty a file before they fill it: that is not a deletion.
        return Err(format!("{shown}: empty; delete the file if that is meant"));
    }
    for (_, trust) in dump.trusts {
        insert(&mut scan.trusts, &trust, shown, "GatewayTrust")?;
    }
    for (_, approval) in dump.approvals {
        insert(&mut scan.approvals, &approval, shown, "DeviceApproval")?;
    }
    Ok(())
}

fn insert<T: kube::ResourceExt + Clone>(
    objects: &mut BTreeMap<ObjectKey, T>,
    object: &T,
    shown: &str,
    kind: &str,
) -> Result<(), String> {
    let name = object
        .meta()
        .name
        .clone()
        .filter(|name| !name.is_empty())
        .ok_or_else(|| format!("{shown}: a {kind} without metadata.name"))?;
    let key = ObjectKey::new(object.namespace().unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned()), name);
    if objects.contains_key(&key) {
        return Err(format!(
            "{shown}: {kind} {key} stands in another file already; the first one counts"
        ));
    }
    objects.insert(key, object.clone());
    Ok(())
}
