//! What the operator remembers of a gateway, in a Secret of its own beside the `GatewayTrust`: its device key, and the
//! prefixes that it has written.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt as _};
use serde_json::json;

use super::object::describe;
use crate::api::{GatewayTrust, ObjectKey};
use crate::cidr::Prefix;
use crate::engine::front::{FrontError, Record};
use crate::gateway::Identity;

const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
const OURS: &str = "gatewaytrust";
const DEVICE_KEY: &str = "device.key";
const OWNED: &str = "trusted-proxies.json";

/// The Secret's name.
pub fn secret_name(gateway: &str) -> String {
    format!("{gateway}-gatewaytrust")
}

fn failed(gateway: &ObjectKey, error: &kube::Error) -> FrontError {
    FrontError(format!(
        "the operator's own Secret {}/{} could not be read or written: {}. May its service account create and update Secrets there?",
        gateway.namespace,
        secret_name(&gateway.name),
        describe(error)
    ))
}

/// Reads the record; makes a new device where there is none.
///
/// # Errors
/// [`FrontError`]; a Secret of that name that is not the operator's, or a damaged key, is never overwritten.
pub async fn load(client: &Client, gateway: &ObjectKey, owner: Option<&GatewayTrust>) -> Result<Record, FrontError> {
    let api: Api<Secret> = Api::namespaced(client.clone(), &gateway.namespace);
    let name = secret_name(&gateway.name);
    match api.get_opt(&name).await.map_err(|error| failed(gateway, &error))? {
        Some(secret) => read(gateway, &secret),
        None => {
            let identity = Identity::generate().map_err(|error| FrontError(error.to_string()))?;
            let record = Record {
                identity,
                owned: BTreeSet::new(),
            };
            // Create, not apply: a key that is there already must never be replaced.
            match api
                .create(&PostParams::default(), &secret_of(gateway, &record, owner))
                .await
            {
                Ok(_) => Ok(record),
                // Somebody was faster: what they made is the operator's device.
                Err(kube::Error::Api(status)) if status.code == 409 => {
                    let secret = api.get(&name).await.map_err(|error| failed(gateway, &error))?;
                    read(gateway, &secret)
                }
                Err(error) => Err(failed(gateway, &error)),
            }
        }
    }
}

fn owned_json(record: &Record) -> String {
    json!(record.owned.iter().map(Prefix::to_string).collect::<Vec<_>>()).to_string()
}

fn secret_of(gateway: &ObjectKey, record: &Record, owner: Option<&GatewayTrust>) -> Secret {
    let bytes = |text: String| ByteString(text.into_bytes());
    Secret {
        metadata: ObjectMeta {
            name: Some(secret_name(&gateway.name)),
            namespace: Some(gateway.namespace.clone()),
            labels: Some(BTreeMap::from([(MANAGED_BY.to_owned(), OURS.to_owned())])),
            owner_references: owner.and_then(owner_reference).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        type_: Some("gatewaytrust.io/operator-device".to_owned()),
        data: Some(BTreeMap::from([
            (DEVICE_KEY.to_owned(), bytes(record.identity.secret())),
            (OWNED.to_owned(), bytes(owned_json(record))),
        ])),
        ..Secret::default()
    }
}

fn owner_reference(trust: &GatewayTrust) -> Option<OwnerReference> {
    use kube::Resource as _;
    // Not a controller reference: garbage collection is all that is wanted.
    trust.owner_ref(&())
}

/// The record in a Secret.
///
/// # Errors
/// [`FrontError`] where it is not the operator's, or damaged.
pub fn read(gateway: &ObjectKey, secret: &Secret) -> Result<Record, FrontError> {
    let shown = format!("Secret {}/{}", gateway.namespace, secret_name(&gateway.name));
    if secret.labels().get(MANAGED_BY).map(String::as_str) != Some(OURS) {
        return Err(FrontError(format!(
            "{shown} exists and is not the operator's (no label {MANAGED_BY}={OURS}): rename it, or the GatewayTrust"
        )));
    }
    let text = |key: &str| {
        secret
            .data
            .as_ref()
            .and_then(|data| data.get(key))
            .map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned())
    };
    let key = text(DEVICE_KEY).ok_or_else(|| {
        FrontError(format!(
            "{shown} has no key {DEVICE_KEY}: delete the Secret to get a new device, which then has to be paired"
        ))
    })?;
    let identity = Identity::from_secret(&key).map_err(|error| FrontError(format!("{shown}: {error}")))?;
    let owned: BTreeSet<String> = text(OWNED)
        .and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or_default();
    Ok(Record {
        identity,
        owned: owned.iter().filter_map(|text| Prefix::parse(text).ok()).collect(),
    })
}

/// Remembers which prefixes are the operator's own. A Secret that somebody has deleted meanwhile is made again.
///
/// # Errors
/// [`FrontError`].
pub async fn remember(
    client: &Client,
    gateway: &ObjectKey,
    record: &Record,
    owner: Option<&GatewayTrust>,
) -> Result<(), FrontError> {
    let api: Api<Secret> = Api::namespaced(client.clone(), &gateway.namespace);
    let patch = json!({"stringData": {OWNED: owned_json(record)}});
    match api
        .patch(
            &secret_name(&gateway.name),
            &PatchParams::default(),
            &Patch::Merge(patch),
        )
        .await
    {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => {
            let created = api
                .create(&PostParams::default(), &secret_of(gateway, record, owner))
                .await;
            created.map(drop).map_err(|error| failed(gateway, &error))
        }
        Err(error) => Err(failed(gateway, &error)),
    }
}
