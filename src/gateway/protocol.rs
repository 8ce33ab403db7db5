//! What the gateway says, parsed at the border: configs, device records, frames. No IO.
//!
//! Every field is read leniently (an unknown one is skipped, a missing one has a default where that is safe), and
//! nothing here can panic on what a gateway sends. Source of the shapes: openclaw 2026.9.6 as measured, and the
//! schema in npm `@openclaw/gateway-protocol`.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use thiserror::Error;

use crate::api::validated::Grant;

/// What the gateway puts in the place of a secret; it must never be written back.
pub const REDACTED: &str = "__OPENCLAW_REDACTED__";

/// An answer that is not what the protocol says.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the answer to {method} has no usable {field}")]
pub struct BadAnswer {
    /// The method that was called.
    pub method: &'static str,
    /// What is missing or of another type.
    pub field: &'static str,
}

/// The part of the gateway's config that this program looks at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GatewayConfig {
    /// The revision that a patch must name. Absent in a recorded state that was edited by hand.
    pub hash: Option<String>,
    /// `gateway.trustedProxies`, as it stands there; none where the key is absent.
    pub trusted_proxies: Option<Vec<String>>,
    /// Whether the admin HTTP RPC plugin is on.
    pub admin_rpc: bool,
}

impl GatewayConfig {
    /// Parses the result of `config.get`.
    ///
    /// # Errors
    /// [`BadAnswer`] where it is no config at all: a partial read must never look like an empty list.
    pub fn parse(result: &Value) -> Result<Self, BadAnswer> {
        let bad = |field| BadAnswer {
            method: "config.get",
            field,
        };
        // `resolved` has includes and environment put in; older gateways have only `config`.
        let config = ["resolved", "config", "parsed"]
            .iter()
            .find_map(|name| result.get(name).filter(|value| value.is_object()))
            .ok_or_else(|| bad("config"))?;
        if result.get("valid") == Some(&Value::Bool(false)) {
            return Err(bad("valid config"));
        }
        let trusted_proxies = match config.pointer("/gateway/trustedProxies") {
            None | Some(Value::Null) => None,
            Some(Value::Array(entries)) => {
                let texts = entries
                    .iter()
                    .map(|entry| entry.as_str().map(str::to_owned))
                    .collect::<Option<Vec<_>>>();
                Some(texts.ok_or_else(|| bad("gateway.trustedProxies"))?)
            }
            Some(_) => return Err(bad("gateway.trustedProxies")),
        };
        Ok(Self {
            hash: result.get("hash").and_then(Value::as_str).map(str::to_owned),
            trusted_proxies,
            admin_rpc: config.pointer("/plugins/entries/admin-http-rpc/enabled") == Some(&Value::Bool(true)),
        })
    }
}

impl GatewayConfig {
    /// The looked-at part in the shape of a `config.get` result, for a recorded state. It holds no secret.
    pub fn to_json(&self) -> Value {
        let mut gateway = json!({});
        if let (Some(entries), Some(fields)) = (&self.trusted_proxies, gateway.as_object_mut()) {
            fields.insert("trustedProxies".to_owned(), json!(entries));
        }
        let plugins = json!({"entries": {"admin-http-rpc": {"enabled": self.admin_rpc}}});
        json!({"hash": self.hash, "config": {"gateway": gateway, "plugins": plugins}})
    }
}

/// A write to the gateway's config.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfigPatch {
    /// `gateway.trustedProxies`, whole.
    pub trusted_proxies: Vec<String>,
}

impl ConfigPatch {
    /// The merge patch as JSON.
    pub fn merge(&self) -> Value {
        json!({"gateway": {"trustedProxies": self.trusted_proxies}})
    }

    /// The parameters of `config.patch`. Arrays are merged unless `replacePaths` names them.
    pub fn parameters(&self, base_hash: &str) -> Value {
        json!({"raw": self.merge().to_string(), "baseHash": base_hash, "replacePaths": ["gateway.trustedProxies"]})
    }
}

/// Stands for a role or scope that is no plain word.
const UNPRINTABLE: &str = "(unprintable)";

fn milliseconds(value: Option<i64>) -> Option<Timestamp> {
    value.and_then(|value| Timestamp::from_millisecond(value).ok())
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawDevice {
    request_id: Option<String>,
    device_id: Option<String>,
    public_key: Option<String>,
    display_name: Option<String>,
    client_id: Option<String>,
    role: Option<String>,
    roles: Option<Vec<String>>,
    scopes: Option<Vec<String>>,
    ts: Option<i64>,
    created_at_ms: Option<i64>,
    approved_at_ms: Option<i64>,
    approved_via: Option<String>,
    connected: Option<bool>,
    remote_ip: Option<String>,
}

impl RawDevice {
    /// What it holds or asks. A device chooses these words itself: one that is no plain word is never covered by any
    /// approval, and must not reach a message.
    fn grant(&self) -> Grant {
        let plain = |word: &String| {
            if is_constant(word) {
                word.clone()
            } else {
                UNPRINTABLE.to_owned()
            }
        };
        Grant {
            roles: self
                .roles
                .iter()
                .flatten()
                .chain(self.role.as_ref())
                .map(plain)
                .collect(),
            scopes: self.scopes.iter().flatten().map(plain).collect(),
        }
    }
}

/// A device that waits for approval.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingRecord {
    /// The request to approve or reject.
    pub request_id: String,
    /// The device.
    pub device_id: String,
    /// The key that it showed.
    pub public_key: String,
    /// Everything that it asks for: one record a device, the union of all that it asked.
    pub asked: Grant,
    /// When it asked.
    pub since: Option<Timestamp>,
    /// What it is, as it says itself (`cli`, `openclaw-control-ui`, ...).
    pub client: String,
}

/// A device that is paired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairedRecord {
    /// The device.
    pub device_id: String,
    /// Its key.
    pub public_key: String,
    /// The name that it gave itself or was given.
    pub display_name: String,
    /// What it holds.
    pub holds: Grant,
    /// When it was approved.
    pub approved_at: Option<Timestamp>,
    /// How.
    pub approved_via: Option<String>,
    /// Whether it has an open connection.
    pub connected: bool,
}

/// The gateway's pairing store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceList {
    /// Waiting.
    pub pending: Vec<PendingRecord>,
    /// Paired.
    pub paired: Vec<PairedRecord>,
}

impl DeviceList {
    /// Parses the result of `device.pair.list`.
    ///
    /// # Errors
    /// [`BadAnswer`] where a list or an id is missing: a partial list must never look as if devices had gone.
    pub fn parse(result: &Value) -> Result<Self, BadAnswer> {
        let bad = |field| BadAnswer {
            method: "device.pair.list",
            field,
        };
        let list = |name: &'static str| -> Result<Vec<RawDevice>, BadAnswer> {
            let entries = result
                .get(name)
                .filter(|value| value.is_array())
                .ok_or_else(|| bad(name))?;
            serde_json::from_value(entries.clone()).map_err(|_| bad(name))
        };
        let mut devices = Self::default();
        for raw in list("pending")? {
            let asked = raw.grant();
            devices.pending.push(PendingRecord {
                request_id: raw.request_id.ok_or_else(|| bad("pending[].requestId"))?,
                device_id: raw.device_id.ok_or_else(|| bad("pending[].deviceId"))?,
                public_key: raw.public_key.unwrap_or_default(),
                asked,
                since: milliseconds(raw.ts),
                client: raw.client_id.unwrap_or_default(),
            });
        }
        for raw in list("paired")? {
            let holds = raw.grant();
            devices.paired.push(PairedRecord {
                device_id: raw.device_id.ok_or_else(|| bad("paired[].deviceId"))?,
                public_key: raw.public_key.ok_or_else(|| bad("paired[].publicKey"))?,
                display_name: raw.display_name.unwrap_or_default(),
                holds,
                approved_at: milliseconds(raw.approved_at_ms.or(raw.created_at_ms)),
                approved_via: raw.approved_via,
                connected: raw.connected.unwrap_or(false),
            });
        }
        Ok(devices)
    }
}

impl DeviceList {
    /// In the shape of a `device.pair.list` result, for a recorded state. It holds no secret.
    pub fn to_json(&self) -> Value {
        let time = |time: Option<Timestamp>| time.map(Timestamp::as_millisecond);
        let pending = self.pending.iter().map(|record| {
            json!({
                "requestId": record.request_id, "deviceId": record.device_id, "publicKey": record.public_key,
                "roles": record.asked.roles, "scopes": record.asked.scopes, "ts": time(record.since), "clientId": record.client,
            })
        });
        let paired = self.paired.iter().map(|record| {
            json!({
                "deviceId": record.device_id, "publicKey": record.public_key, "displayName": record.display_name,
                "roles": record.holds.roles, "scopes": record.holds.scopes, "approvedAtMs": time(record.approved_at),
                "approvedVia": record.approved_via, "connected": record.connected,
            })
        });
        json!({"pending": pending.collect::<Vec<_>>(), "paired": paired.collect::<Vec<_>>()})
    }
}

/// A frame from the gateway.
#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    /// The answer to a request.
    Response {
        /// The request's id.
        id: String,
        /// What came of it.
        outcome: Result<Value, RemoteError>,
    },
    /// Something happened.
    Event {
        /// Its name.
        name: String,
        /// What it says.
        payload: Value,
        /// Its number on this connection; a gap means that events were dropped.
        sequence: Option<u64>,
    },
    /// A frame of a type that this version does not know.
    Other,
}

/// An error that the gateway answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RemoteError {
    /// Its class (`INVALID_REQUEST`, `UNAVAILABLE`, ...).
    pub code: String,
    /// For people. Never shown: it may quote what was sent.
    pub message: String,
    /// Details.
    pub details: Value,
    /// When to try again, in milliseconds.
    pub retry_after_ms: Option<u64>,
}

impl RemoteError {
    /// A constant out of `details`, such as `PAIRING_REQUIRED`. Anything that is not a plain constant is dropped:
    /// only such words may reach a status or a log.
    pub fn detail(&self, name: &str) -> Option<&str> {
        self.details
            .get(name)
            .and_then(Value::as_str)
            .filter(|text| is_constant(text))
    }

    /// The most telling constant: the detailed code, else the class.
    pub fn constant(&self) -> &str {
        self.detail("code").unwrap_or(if is_constant(&self.code) {
            &self.code
        } else {
            "an unknown error"
        })
    }
}

/// Whether a text from the gateway is a plain word that is safe to show.
pub fn is_constant(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 64
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b':'))
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum RawFrame {
    Res {
        id: String,
        #[serde(default)]
        ok: bool,
        #[serde(default)]
        payload: Value,
        #[serde(default)]
        error: Option<RemoteError>,
    },
    Event {
        event: String,
        #[serde(default)]
        payload: Value,
        #[serde(default)]
        seq: Option<u64>,
    },
    #[serde(other)]
    Other,
}

impl Frame {
    /// Parses one text frame.
    ///
    /// # Errors
    /// [`BadAnswer`] where it is no frame of the protocol.
    pub fn parse(text: &str) -> Result<Self, BadAnswer> {
        let raw: RawFrame = serde_json::from_str(text).map_err(|_| BadAnswer {
            method: "the connection",
            field: "frame",
        })?;
        Ok(match raw {
            RawFrame::Res {
                id, ok: true, payload, ..
            } => Self::Response {
                id,
                outcome: Ok(payload),
            },
            RawFrame::Res { id, error, .. } => Self::Response {
                id,
                outcome: Err(error.unwrap_or_default()),
            },
            RawFrame::Event { event, payload, seq } => Self::Event {
                name: event,
                payload,
                sequence: seq,
            },
            RawFrame::Other => Self::Other,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_partial_config_is_no_empty_list() {
        assert!(GatewayConfig::parse(&json!({})).is_err());
        assert!(GatewayConfig::parse(&json!({"config": {"gateway": {"trustedProxies": "10.0.0.1"}}})).is_err());
        assert!(GatewayConfig::parse(&json!({"config": {"gateway": {"trustedProxies": [1]}}})).is_err());
        assert!(GatewayConfig::parse(&json!({"valid": false, "config": {}})).is_err());
        assert_eq!(
            GatewayConfig::parse(&json!({"config": {}})).map(|config| config.trusted_proxies),
            Ok(None)
        );
    }

    #[test]
    fn a_partial_device_list_is_no_empty_store() {
        assert!(DeviceList::parse(&json!({"pending": []})).is_err());
        assert!(DeviceList::parse(&json!({"pending": [], "paired": [{}]})).is_err());
        assert!(DeviceList::parse(&json!({"pending": [{"deviceId": "d"}], "paired": []})).is_err());
    }

    #[test]
    fn only_plain_constants_of_an_error_are_shown() {
        let error: RemoteError =
            serde_json::from_value(json!({"code": "INVALID_REQUEST", "details": {"code": "bad token: s3cret!"}}))
                .expect("error");
        assert_eq!(error.constant(), "INVALID_REQUEST");
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parsers_panic(text in "\\PC{0,200}") {
            let _ = Frame::parse(&text);
            if let Ok(value) = serde_json::from_str::<Value>(&text) {
                let _ = GatewayConfig::parse(&value);
                let _ = DeviceList::parse(&value);
            }
        }

        #[test]
        fn frames_with_stray_fields_never_panic(kind in "(res|event|req|x)", id in "[a-z0-9]{0,4}", ok in any::<bool>(), n in any::<i64>()) {
            let frame = json!({"type": kind, "id": id, "event": id, "ok": ok, "seq": n, "error": {"retryAfterMs": n, "details": n}, "extra": [n]});
            let _ = Frame::parse(&frame.to_string());
        }
    }
}
