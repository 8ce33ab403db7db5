//! What a plan is made from: dumps of the cluster, our own objects, and what is known of each gateway.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::Path;

use serde_json::{Value, json};

use super::CommandError;
use crate::api::ObjectKey;
use crate::cluster::dump::Dump;
use crate::discovery::NamespacePolicy;
use crate::gateway::protocol::{DeviceList, GatewayConfig};

/// What is known of a gateway.
#[derive(Clone, Debug, Default)]
pub struct GatewayState {
    /// Its config.
    pub config: Option<GatewayConfig>,
    /// Its pairing store.
    pub devices: Option<DeviceList>,
    /// The operator's own device.
    pub own_device: Option<String>,
    /// The prefixes that the operator has put into the config.
    pub owned: BTreeSet<crate::cidr::Prefix>,
}

impl GatewayState {
    /// Parses `{"config": ..., "devices": ...}`, each part optional.
    ///
    /// # Errors
    /// A sentence that names the part.
    pub fn parse(text: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(text).map_err(|error| format!("not JSON: {error}"))?;
        let part = |name: &str| value.get(name).filter(|part| !part.is_null());
        Ok(Self {
            config: part("config")
                .map(GatewayConfig::parse)
                .transpose()
                .map_err(|error| error.to_string())?,
            devices: part("devices")
                .map(DeviceList::parse)
                .transpose()
                .map_err(|error| error.to_string())?,
            own_device: part("operatorDevice").and_then(Value::as_str).map(str::to_owned),
            owned: part("owned")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .filter_map(|text| crate::cidr::Prefix::parse(text).ok())
                .collect(),
        })
    }
}

impl GatewayState {
    /// As [`GatewayState::parse`] reads it.
    pub fn to_json(&self) -> Value {
        let owned: Vec<String> = self.owned.iter().map(ToString::to_string).collect();
        json!({
            "config": self.config.as_ref().map(GatewayConfig::to_json),
            "devices": self.devices.as_ref().map(DeviceList::to_json),
            "operatorDevice": self.own_device,
            "owned": owned,
        })
    }
}

/// Everything that a plan is made from.
#[derive(Debug, Default)]
pub struct Sources {
    /// The cluster and our own objects.
    pub dump: Dump,
    /// What is known of each gateway; under `None` what holds for all others.
    pub gateways: BTreeMap<Option<ObjectKey>, GatewayState>,
    /// Which namespaces proxies may live in.
    pub namespaces: NamespacePolicy,
}

/// Reads dumps and our own objects.
///
/// # Errors
/// [`CommandError::Input`], naming the file.
pub fn read_files(files: &[std::path::PathBuf]) -> Result<Sources, CommandError> {
    let mut sources = Sources::default();
    for file in files {
        read_path(file, &mut sources.dump)?;
    }
    Ok(sources)
}

fn read_path(path: &Path, dump: &mut Dump) -> Result<(), CommandError> {
    let input = |error: String| CommandError::Input(error);
    let shown = path.display().to_string();
    if shown == "-" {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .map_err(|error| input(format!("stdin: {error}")))?;
        return dump.add("stdin", &text).map_err(|error| input(error.to_string()));
    }
    let metadata = std::fs::metadata(path).map_err(|error| input(format!("{shown}: {error}")))?;
    if metadata.is_dir() {
        let mut entries: Vec<_> = std::fs::read_dir(path)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| input(format!("{shown}: {error}")))?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let hidden = entry.file_name().to_string_lossy().starts_with('.');
            let yaml = path
                .extension()
                .is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known));
            if !hidden && (yaml || entry.file_type().is_ok_and(|kind| kind.is_dir())) {
                read_path(&path, dump)?;
            }
        }
        return Ok(());
    }
    let text = std::fs::read_to_string(path).map_err(|error| input(format!("{shown}: {error}")))?;
    dump.add(&shown, &text).map_err(|error| input(error.to_string()))
}

/// Reads `[NAMESPACE/NAME=]FILE`.
///
/// # Errors
/// [`CommandError::Input`], naming the file and the part.
pub fn read_state(given: &str) -> Result<(Option<ObjectKey>, GatewayState), CommandError> {
    let (key, file) = match given.split_once('=') {
        Some((key, file)) => match key.split_once('/') {
            Some((namespace, name)) => (Some(ObjectKey::new(namespace, name)), file),
            None => {
                return Err(CommandError::Input(format!(
                    "--gateway-state {given}: before the = there must be NAMESPACE/NAME"
                )));
            }
        },
        None => (None, given),
    };
    let text = std::fs::read_to_string(file)
        .map_err(|error| CommandError::Input(format!("--gateway-state {file}: {error}")))?;
    let state =
        GatewayState::parse(&text).map_err(|error| CommandError::Input(format!("--gateway-state {file}: {error}")))?;
    Ok((key, state))
}
