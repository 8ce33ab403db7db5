//! A snapshot from `kubectl get ... -o yaml` dumps: documents in, snapshot and our own resources out. No IO.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;

use super::raw;
use super::{IngressClassView, IngressView, NamespaceView, PodView, Snapshot};
use crate::api::{DeviceApproval, GROUP, GatewayTrust, ObjectKey};

/// Why a document cannot be read.
#[derive(Debug, Error)]
pub enum DumpError {
    /// The text is no YAML or JSON.
    #[error("{file}: not YAML or JSON: {problem}")]
    Syntax {
        /// Where it came from.
        file: String,
        /// What the parser says.
        problem: String,
    },
    /// A document is not an object of the Kubernetes API.
    #[error("{file}: document {document}: {problem}")]
    Document {
        /// Where it came from.
        file: String,
        /// Its number, from 1.
        document: usize,
        /// What is wrong, naming the field.
        problem: String,
    },
}

/// What a set of files holds.
#[derive(Debug, Default)]
pub struct Dump {
    /// The cluster.
    pub snapshot: Snapshot,
    /// `GatewayTrust` objects, with the file each came from.
    pub trusts: Vec<(String, GatewayTrust)>,
    /// `DeviceApproval` objects, with the file each came from.
    pub approvals: Vec<(String, DeviceApproval)>,
    /// Kinds that are not read, and how many objects of each there were.
    pub ignored: BTreeMap<String, usize>,
}

#[derive(Deserialize)]
struct Parts<S, T> {
    #[serde(default)]
    metadata: ObjectMeta,
    #[serde(default = "Option::default")]
    spec: Option<S>,
    #[serde(default = "Option::default")]
    status: Option<T>,
}

/// The documents of a YAML or JSON text; empty ones are left out.
///
/// # Errors
/// [`DumpError::Syntax`].
pub fn documents(file: &str, text: &str) -> Result<Vec<Value>, DumpError> {
    if text.trim_start().starts_with('{')
        && let Ok(document) = serde_json::from_str(text)
    {
        return Ok(vec![document]);
    }
    // Only `true` and `false` are booleans: a namespace may well be called `n` or `on`.
    let options = serde_saphyr::options! { strict_booleans: true };
    let documents: Vec<Value> =
        serde_saphyr::from_multiple_with_options(text, options).map_err(|error| DumpError::Syntax {
            file: file.to_owned(),
            // The first line says what and where; the rest draws the place.
            problem: error.to_string().lines().next().unwrap_or_default().to_owned(),
        })?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

impl Dump {
    /// Adds the documents of one file; a `kind: List` counts as its items.
    ///
    /// # Errors
    /// [`DumpError`], naming the file, the document and the field. What was read before stays.
    pub fn add(&mut self, file: &str, text: &str) -> Result<(), DumpError> {
        for (index, document) in documents(file, text)?.into_iter().enumerate() {
            self.snapshot.exists = true;
            self.add_object(file, document).map_err(|problem| DumpError::Document {
                file: file.to_owned(),
                document: index + 1,
                problem,
            })?;
        }
        Ok(())
    }

    /// Adds one object.
    ///
    /// # Errors
    /// What is wrong, naming the field.
    pub fn add_object(&mut self, file: &str, document: Value) -> Result<(), String> {
        let text = |pointer: &str| {
            document
                .pointer(pointer)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let (group_version, kind) = (text("/apiVersion"), text("/kind"));
        if kind.is_empty() {
            return Err("no field `kind`: not an object of the Kubernetes API".to_owned());
        }
        if let (true, Value::Object(mut list)) = (kind.ends_with("List"), document.clone())
            && let Some(Value::Array(items)) = list.remove("items")
        {
            // A typed list (`kind: PodList`) leaves the kind out of its items.
            let item_kind = kind.trim_end_matches("List").to_owned();
            for mut item in items {
                if let Some(object) = item.as_object_mut()
                    && !item_kind.is_empty()
                {
                    object.entry("kind").or_insert_with(|| item_kind.clone().into());
                    object
                        .entry("apiVersion")
                        .or_insert_with(|| group_version.clone().into());
                }
                self.add_object(file, item)?;
            }
            return Ok(());
        }
        let group = group_version.split_once('/').map_or("", |(group, _)| group);
        let key = ObjectKey::new(text("/metadata/namespace"), text("/metadata/name"));
        let s = &mut self.snapshot;
        match (group, kind.as_str()) {
            ("", "Service") => {
                s.services.insert(
                    key,
                    decode::<raw::ServiceSpec, Value>(document)?
                        .spec
                        .unwrap_or_default()
                        .into(),
                );
            }
            ("discovery.k8s.io", "EndpointSlice") => {
                s.slices.insert(key, decode_whole::<raw::Slice>(document)?.into());
            }
            ("networking.k8s.io", "Ingress") => {
                let parts = decode::<raw::IngressSpec, Value>(document)?;
                s.ingresses
                    .insert(key, IngressView::new(&parts.metadata, parts.spec.unwrap_or_default()));
            }
            ("networking.k8s.io", "IngressClass") => {
                let parts = decode::<raw::IngressClassSpec, Value>(document)?;
                s.ingress_classes.insert(
                    key.name,
                    IngressClassView::new(&parts.metadata, parts.spec.unwrap_or_default()),
                );
            }
            ("", "Namespace") => {
                let parts = decode::<Value, Value>(document)?;
                s.namespaces.insert(key.name, NamespaceView::new(&parts.metadata));
            }
            ("", "Pod") => {
                let parts = decode::<raw::PodSpec, raw::PodStatus>(document)?;
                s.pods.insert(
                    key,
                    PodView::new(
                        &parts.metadata,
                        parts.spec.unwrap_or_default(),
                        parts.status.unwrap_or_default(),
                    ),
                );
            }
            (GROUP, "GatewayTrust") => self.trusts.push((file.to_owned(), own(document)?)),
            (GROUP, "DeviceApproval") => self.approvals.push((file.to_owned(), own(document)?)),
            _ => *self.ignored.entry(kind).or_default() += 1,
        }
        Ok(())
    }
}

fn decode<S: DeserializeOwned, T: DeserializeOwned>(document: Value) -> Result<Parts<S, T>, String> {
    decode_whole(document)
}

fn decode_whole<T: DeserializeOwned>(document: Value) -> Result<T, String> {
    serde_path_to_error::deserialize(document).map_err(|error| match error.path().to_string().as_str() {
        "." => error.inner().to_string(),
        field => format!("{field}: {}", error.inner()),
    })
}

/// One of our own resources: strictly, because nobody else looks at a file. A misspelt field is an error, as the API
/// server would say it.
fn own<T: DeserializeOwned + serde::Serialize>(document: Value) -> Result<T, String> {
    let object: T = decode_whole(document.clone())?;
    if document.pointer("/metadata/resourceVersion").is_some() {
        // It comes from an API server, which has looked already; a newer one may know more fields than this program.
        return Ok(object);
    }
    let read = serde_json::to_value(&object).map_err(|error| error.to_string())?;
    match document
        .get("spec")
        .zip(read.get("spec"))
        .and_then(|(written, read)| first_unknown("spec", written, read))
    {
        Some(field) => Err(format!("unknown field {field:?}")),
        None => Ok(object),
    }
}

/// The first field of `written` that reading it lost.
fn first_unknown(path: &str, written: &Value, read: &Value) -> Option<String> {
    match (written, read) {
        (Value::Object(written), Value::Object(read)) => written.iter().find_map(|(name, value)| {
            let path = format!("{path}.{name}");
            match read.get(name) {
                Some(inner) => first_unknown(&path, value, inner),
                // Left out because it is empty or null, which says the same.
                None if is_empty(value) => None,
                None => Some(path),
            }
        }),
        (Value::Array(written), Value::Array(read)) => written
            .iter()
            .zip(read)
            .enumerate()
            .find_map(|(index, (written, read))| first_unknown(&format!("{path}[{index}]"), written, read)),
        _ => None,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_lists_and_counts_what_it_does_not_know() {
        let mut dump = Dump::default();
        let text = "
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: ConfigMap, metadata: {name: a}}
- {apiVersion: v1, kind: Pod, metadata: {namespace: n, name: p, uid: u}, spec: {containers: [{args: [--x]}]}, status: {podIPs: [{ip: 10.1.2.3}]}}
---
{apiVersion: v1, kind: PodList, items: [{metadata: {namespace: n, name: q}, status: {phase: Succeeded, podIP: 10.1.2.4}}]}
";
        dump.add("dump.yaml", text).expect("readable");
        assert_eq!(dump.ignored.get("ConfigMap"), Some(&1));
        let addresses: Vec<_> = dump.snapshot.pods.values().map(|pod| pod.addresses.len()).collect();
        assert_eq!(addresses, [1, 0], "a finished pod has no address");
    }

    #[test]
    fn a_misspelt_field_is_named() {
        let text = "{apiVersion: gatewaytrust.io/v1alpha1, kind: GatewayTrust, metadata: {name: a}, spec: {gateway: {url: 'https://x/'}, proxies: {rangs: [1]}}}";
        let error = Dump::default()
            .add("gateway.yaml", text)
            .expect_err("misspelt")
            .to_string();
        assert_eq!(error, r#"gateway.yaml: document 1: unknown field "spec.proxies.rangs""#);
    }

    #[test]
    fn texts_that_are_no_objects_are_errors() {
        assert!(Dump::default().add("a", "{: [").is_err());
        assert!(Dump::default().add("a", "just text").is_err());
        assert!(Dump::default().add("a", "").is_ok());
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "\\PC{0,300}") {
            let _ = Dump::default().add("any", &text);
        }

        #[test]
        fn no_yaml_like_text_makes_the_reader_panic(text in "[-a-z:{}\\[\\]&*!|> \n\"'#,0-9]{0,200}") {
            let _ = Dump::default().add("any", &text);
        }

        #[test]
        fn objects_of_any_shape_never_panic(kind in "(Pod|Service|Ingress|IngressClass|EndpointSlice|Namespace|List|GatewayTrust|DeviceApproval)", group in "(v1|networking.k8s.io/v1|discovery.k8s.io/v1|gatewaytrust.io/v1alpha1)", n in proptest::prelude::any::<i64>(), text in "\\PC{0,20}") {
            for value in [serde_json::json!(n), serde_json::json!(text), serde_json::json!([n]), serde_json::json!({"ports": n, "hostNetwork": text, "rules": [n], "gateway": n})] {
                let document = serde_json::json!({"apiVersion": group, "kind": kind, "metadata": {"name": text}, "spec": value, "status": value, "items": value, "ports": value, "endpoints": value});
                let _ = Dump::default().add("any", &document.to_string());
            }
        }
    }
}
