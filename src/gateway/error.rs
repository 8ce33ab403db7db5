//! What can go wrong towards a gateway: connecting, and calling. Each has a condition reason and a next step.
//!
//! No response body, token or header ever stands in one of these: only constants of the protocol, addresses, and
//! what the TLS library says of a certificate.

use std::time::Duration;

use thiserror::Error;

use super::protocol::{BadAnswer, RemoteError};
use crate::api::Reason;
use crate::api::validated::Origin;

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConnectError {
    /// The name does not resolve.
    #[error("{0} does not resolve. Is the name right? For a Service: kubectl get service")]
    NameNotResolved(String),
    /// It resolves to what is never a gateway.
    #[error(
        "{host} resolves to {address}, a link-local or metadata address, to which no credential is sent. Correct spec.gateway.url or the name's DNS record."
    )]
    AddressRefused {
        /// The name.
        host: String,
        /// What it resolves to.
        address: String,
    },
    /// Nothing listens, or the network does not lead there.
    #[error(
        "nothing answers at {address} ({problem}). Is the gateway running, and is its port right? A gateway with bind: loopback can be reached from its own host only."
    )]
    Failed {
        /// The address.
        address: String,
        /// The system's own word for it.
        problem: String,
    },
    /// TLS.
    #[error(
        "TLS to {host} failed: {problem}. If the gateway's certificate is of an authority of your own, put that authority into spec.gateway.tls.caSecretRef; if it is issued for another name, set spec.gateway.tls.serverName; if the gateway speaks no TLS, use an http URL or leave spec.gateway.tls out."
    )]
    Tls {
        /// The host.
        host: String,
        /// What the TLS library says.
        problem: String,
    },
    /// A redirect.
    #[error(
        "{origin} answers with a redirect (HTTP {status}), which is never followed with a credential. Put the gateway's final address into spec.gateway.url."
    )]
    Redirected {
        /// Where we asked.
        origin: String,
        /// The HTTP status.
        status: u16,
    },
    /// 403 with `proxy_attribution_required`.
    #[error(
        "the gateway cannot tell who is calling (HTTP 403 proxy_attribution_required): the operator's own address lies in a range that the gateway trusts as a proxy, or a proxy stands in between. Take the range out of gateway.trustedProxies (openclaw config get gateway.trustedProxies, in the gateway's container), or point spec.gateway at the gateway itself."
    )]
    Attribution,
    /// Anything else that is not the protocol.
    #[error(
        "{origin} does not answer like an OpenClaw gateway ({what}). Is this the gateway's port (18789 by default), and does a proxy in between pass WebSocket upgrades on?"
    )]
    Unexpected {
        /// Where we asked.
        origin: String,
        /// What came, without any of its body.
        what: String,
    },
    /// Too slow.
    #[error("the gateway did not answer within {0:?} while connecting. It may still be starting.")]
    TimedOut(Duration),
    /// A token or password that is not the gateway's.
    #[error(
        "the gateway refused the credential ({0}). It is tried again when the Secret changes, and else every five minutes only, because ten wrong tokens lock the address out. Compare the Secret with what the gateway runs with: openclaw config get gateway.auth.mode, and its OPENCLAW_GATEWAY_TOKEN."
    )]
    WrongToken(String),
    /// Locked out.
    #[error("the gateway has locked this address out after too many wrong tokens; tried again in {} s.", retry.as_secs())]
    RateLimited {
        /// When it may be tried again.
        retry: Duration,
    },
    /// Not paired yet.
    #[error("the operator's own device waits for approval")]
    PairingRequired {
        /// The request to approve; absent where the gateway names none.
        request_id: Option<String>,
    },
    /// Another protocol version.
    #[error(
        "the gateway does not speak protocol version 4 ({0}). Update the gateway, or use the gatewaytrust release that fits it."
    )]
    Protocol(String),
    /// The device itself was refused.
    #[error(
        "the gateway refused the operator's device ({0}). A clock that is off by minutes, or a proxy that rewrites requests, causes this: compare `date` on both sides."
    )]
    Device(String),
    /// Any other refusal.
    #[error("the gateway refused the connection ({0}).")]
    Refused(String),
    /// Not ready yet: it says so itself.
    #[error("the gateway is still starting ({0})")]
    Starting(String),
}

impl ConnectError {
    /// The reason of the condition `GatewayReachable`.
    pub const fn reason(&self) -> Reason {
        match self {
            Self::NameNotResolved(_) => Reason::NameNotResolved,
            Self::AddressRefused { .. } => Reason::AddressRefused,
            Self::Failed { .. } => Reason::ConnectFailed,
            Self::Tls { .. } => Reason::TLSFailed,
            Self::Redirected { .. } => Reason::Redirected,
            Self::Attribution => Reason::ProxyAttributionRequired,
            Self::Unexpected { .. } => Reason::UnexpectedAnswer,
            Self::TimedOut(_) | Self::Starting(_) => Reason::TimedOut,
            Self::WrongToken(_) => Reason::WrongToken,
            Self::RateLimited { .. } => Reason::RateLimited,
            Self::PairingRequired { .. } => Reason::EnrolmentPending,
            Self::Protocol(_) => Reason::ProtocolMismatch,
            Self::Device(_) => Reason::DeviceRefused,
            Self::Refused(_) => Reason::ConnectRefused,
        }
    }

    /// The command by which a person sees the same, where the message itself has none.
    pub fn next_command(&self, origin: &Origin) -> Option<String> {
        let (host, port) = (origin.url_host(), origin.port);
        let http = if origin.tls { "https" } else { "http" };
        match self {
            Self::NameNotResolved(name) | Self::AddressRefused { host: name, .. } => {
                Some(format!("getent hosts {name}"))
            }
            Self::Failed { .. } | Self::TimedOut(_) | Self::Starting(_) => {
                Some(format!("curl -v {http}://{host}:{port}/healthz"))
            }
            Self::Tls { .. } => Some(format!(
                "openssl s_client -connect {host}:{port} -servername {} </dev/null",
                origin.host
            )),
            Self::Redirected { .. } | Self::Unexpected { .. } => {
                Some(format!("curl -sI {http}://{host}:{port}{}", origin.path))
            }
            Self::Protocol(_) | Self::Refused(_) => {
                Some("openclaw --version; openclaw logs (in the gateway's container)".to_owned())
            }
            Self::Attribution
            | Self::WrongToken(_)
            | Self::RateLimited { .. }
            | Self::PairingRequired { .. }
            | Self::Device(_) => None,
        }
    }

    /// Whether trying again with the same credential does harm.
    pub const fn waits_for_new_credential(&self) -> bool {
        matches!(self, Self::WrongToken(_))
    }

    /// From the gateway's refusal of the `connect` request.
    pub fn from_refusal(error: &RemoteError) -> Self {
        let constant = error.constant().to_owned();
        match constant.as_str() {
            "PAIRING_REQUIRED" => Self::PairingRequired {
                request_id: error.detail("requestId").map(str::to_owned),
            },
            "AUTH_RATE_LIMITED" => Self::RateLimited {
                retry: error.retry_after_ms.map_or(LOCKOUT, Duration::from_millis).min(LOCKOUT),
            },
            "PROTOCOL_MISMATCH" => Self::Protocol(constant),
            "UNAVAILABLE" => Self::Starting(error.detail("reason").unwrap_or("UNAVAILABLE").to_owned()),
            other if other.starts_with("DEVICE_AUTH_") || other == "DEVICE_IDENTITY_REQUIRED" => Self::Device(constant),
            other if other.starts_with("AUTH_") => Self::WrongToken(constant),
            _ => Self::Refused(constant),
        }
    }
}

/// How long ten wrong tokens lock an address out (measured on openclaw 2026.9.6).
const LOCKOUT: Duration = Duration::from_secs(300);

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CallError {
    /// The connection ended before the answer came: it is not known whether the gateway did it.
    #[error("the connection ended during {0}")]
    Disconnected(&'static str),
    /// No answer in time: not known either.
    #[error("no answer to {method} within {limit:?}")]
    TimedOut {
        /// The method.
        method: &'static str,
        /// The limit.
        limit: Duration,
    },
    /// The gateway said no.
    #[error("{method} was refused: {constant}")]
    Refused {
        /// The method.
        method: &'static str,
        /// The gateway's constant.
        constant: String,
    },
    /// The request or the device is not there (any more).
    #[error("{0}: the gateway does not know it any more")]
    Unknown(&'static str),
    /// Too many calls of this method.
    #[error("{method} is limited by the gateway; tried again in {} s", retry.as_secs())]
    Limited {
        /// The method.
        method: &'static str,
        /// When it may be tried again.
        retry: Duration,
    },
    /// The config changed in between.
    #[error("the config changed between reading and writing")]
    StaleHash,
    /// The config cannot be written.
    #[error("the gateway's config is read-only")]
    ReadOnly,
    /// An answer that cannot be used.
    #[error(transparent)]
    Bad(#[from] BadAnswer),
}

impl CallError {
    /// From an error that the gateway answered to a method.
    pub fn from_remote(method: &'static str, error: &RemoteError) -> Self {
        let says = |words: &str| {
            error.message.contains(words)
                || error.detail("code") == Some(words)
                || error.detail("reason") == Some(words)
        };
        if error.code == "UNAVAILABLE" && error.retry_after_ms.is_some() {
            return Self::Limited {
                method,
                retry: Duration::from_millis(error.retry_after_ms.unwrap_or_default()).min(LOCKOUT),
            };
        }
        if says("unknown requestId") || says("unknown deviceId") {
            return Self::Unknown(method);
        }
        if says("changed since last load") || says("base hash") {
            return Self::StaleHash;
        }
        if says("ConfigReadOnlyError") || says("read-only") || says("OPENCLAW_CONFIG_READONLY") {
            return Self::ReadOnly;
        }
        Self::Refused {
            method,
            constant: error.constant().to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn remote(value: serde_json::Value) -> RemoteError {
        serde_json::from_value(value).expect("an error")
    }

    #[test]
    fn refusals_are_told_apart_by_their_constants() {
        let reason = |code: &str| {
            ConnectError::from_refusal(&remote(json!({"code": "INVALID_REQUEST", "details": {"code": code}}))).reason()
        };
        assert_eq!(reason("PAIRING_REQUIRED"), Reason::EnrolmentPending);
        assert_eq!(reason("AUTH_TOKEN_MISMATCH"), Reason::WrongToken);
        assert_eq!(reason("AUTH_RATE_LIMITED"), Reason::RateLimited);
        assert_eq!(reason("DEVICE_AUTH_SIGNATURE_EXPIRED"), Reason::DeviceRefused);
        assert_eq!(reason("PROTOCOL_MISMATCH"), Reason::ProtocolMismatch);
        assert_eq!(reason("SOMETHING_NEW"), Reason::ConnectRefused);
        let starting =
            remote(json!({"code": "UNAVAILABLE", "retryAfterMs": 500, "details": {"reason": "startup-sidecars"}}));
        assert_eq!(ConnectError::from_refusal(&starting).reason(), Reason::TimedOut);
    }

    #[test]
    fn what_a_gateway_writes_never_reaches_a_message() {
        let error = remote(
            json!({"code": "token s3cret", "message": "your token s3cret", "details": {"code": "no s3cret!", "requestId": "a b; s3cret"}}),
        );
        let connect = ConnectError::from_refusal(&error).to_string();
        let call = CallError::from_remote("config.patch", &error).to_string();
        assert!(
            !connect.contains("s3cret") && !call.contains("s3cret"),
            "{connect} {call}"
        );
    }

    #[test]
    fn answers_of_the_real_gateway_are_understood() {
        let call = |value| CallError::from_remote("config.patch", &remote(value));
        let limited = json!({"code": "UNAVAILABLE", "message": "rate limit exceeded", "retryAfterMs": 41000});
        assert_eq!(
            call(limited),
            CallError::Limited {
                method: "config.patch",
                retry: Duration::from_secs(41)
            }
        );
        let stale = json!({"code": "INVALID_REQUEST", "message": "config changed since last load; re-run config.get and retry"});
        assert_eq!(call(stale), CallError::StaleHash);
        assert_eq!(
            call(json!({"code": "INVALID_REQUEST", "message": "unknown requestId"})),
            CallError::Unknown("config.patch")
        );
        let endless = json!({"code": "UNAVAILABLE", "retryAfterMs": u64::MAX});
        assert_eq!(
            call(endless),
            CallError::Limited {
                method: "config.patch",
                retry: LOCKOUT
            },
            "a wait is bounded"
        );
    }
}
