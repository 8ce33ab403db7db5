//! Getting the operator's own device paired, where it is not on loopback: by the admin HTTP RPC plugin, and only
//! where that is on already. Nothing else is ever sent there.

use std::time::Duration;

use serde_json::{Value, json};

use super::endpoint::{Credential, Endpoint};
use super::error::ConnectError;
use super::protocol::RemoteError;

const LIMIT: Duration = Duration::from_secs(10);
/// An answer is a few hundred bytes; more than this is not the plugin's.
const ANSWER_LIMIT: usize = 1 << 20;

/// Approves the operator's own pending request. `Ok(false)`: the plugin is off (404).
///
/// # Errors
/// [`ConnectError`], as for the WebSocket: no redirect is followed, no proxy of the environment is used, and the
/// addresses are checked before they are used.
pub async fn approve_by_admin_rpc(
    endpoint: &Endpoint,
    credential: &Credential,
    request_id: &str,
) -> Result<bool, ConnectError> {
    let origin = &endpoint.origin;
    let shown = format!("{}{}api/v1/admin/rpc", origin.consent(), origin.path);
    let unexpected = |what: &str| ConnectError::Unexpected {
        origin: shown.clone(),
        what: what.to_owned(),
    };
    let addresses = endpoint.addresses().await?;
    let mut builder = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .timeout(LIMIT);
    // The name in the URL is the one that the certificate must carry; the address is always the checked one. Only a
    // DNS name can be bound to an address here: for an IP in serverName the connection would go to that IP.
    let named = endpoint.server_name.as_ref().filter(|_| endpoint.tls.is_some());
    let host = named.unwrap_or(&origin.host).clone();
    match rustls::pki_types::ServerName::try_from(host.clone()) {
        Ok(rustls::pki_types::ServerName::DnsName(_)) => builder = builder.resolve_to_addrs(&host, &addresses),
        Ok(_) if host == origin.host && addresses.iter().all(|address| host.parse() == Ok(address.ip())) => {}
        _ => return Err(unexpected("a server name by which the plugin cannot be asked safely")),
    }
    if let Some(tls) = &endpoint.tls {
        builder = builder.tls_backend_preconfigured(tls.as_ref().clone());
    }
    let client = builder.build().map_err(|_| unexpected("no HTTP client"))?;
    let scheme = if origin.tls { "https" } else { "http" };
    let shown_host = if host.contains(':') { format!("[{host}]") } else { host };
    let url = format!("{scheme}://{shown_host}:{}{}api/v1/admin/rpc", origin.port, origin.path);
    let body = json!({"id": "enrol", "method": "device.pair.approve", "params": {"requestId": request_id}});
    let answer = client
        .post(url)
        .bearer_auth(credential.secret.expose())
        .json(&body)
        .send()
        .await;
    let answer = answer.map_err(|error| {
        if error.is_timeout() {
            ConnectError::TimedOut(LIMIT)
        } else {
            unexpected("no HTTP answer")
        }
    })?;
    let status = answer.status();
    match status.as_u16() {
        404 => return Ok(false),
        401 => return Err(ConnectError::WrongToken("HTTP 401".to_owned())),
        429 => {
            return Err(ConnectError::RateLimited {
                retry: Duration::from_secs(300),
            });
        }
        300..=399 => {
            return Err(ConnectError::Redirected {
                origin: shown,
                status: status.as_u16(),
            });
        }
        200..=299 => {}
        code => return Err(unexpected(&format!("HTTP {code}"))),
    }
    if answer
        .content_length()
        .is_some_and(|length| length > ANSWER_LIMIT as u64)
    {
        return Err(unexpected("an answer that is far too long"));
    }
    let value: Value = answer
        .json()
        .await
        .map_err(|_| unexpected("an answer that is no JSON"))?;
    if value.get("ok") == Some(&Value::Bool(true)) {
        return Ok(true);
    }
    let error: RemoteError = value
        .get("error")
        .cloned()
        .and_then(|error| serde_json::from_value(error).ok())
        .unwrap_or_default();
    Err(ConnectError::Refused(error.constant().to_owned()))
}
