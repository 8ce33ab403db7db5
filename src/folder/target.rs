//! Where a gateway of the folder is, and what to sign in with: from the environment or from files, never from YAML.

use std::path::Path;

use super::Options;
use crate::api::gateway_trust::SecretKeyReference;
use crate::api::validated::{CredentialKind, Origin, Target, ValidatedTrust};
use crate::cluster::raw::CREDENTIAL_VARIABLES;
use crate::engine::front::{ResolvedTarget, TargetError};
use crate::gateway::tls::client_config;
use crate::gateway::{Credential, Endpoint, Secret};

/// Decides where to connect, and with what.
///
/// # Errors
/// [`TargetError`], with what to do.
pub fn resolve(
    options: &Options,
    trust: &ValidatedTrust,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<ResolvedTarget, TargetError> {
    let origin = match &trust.target {
        Target::Url(origin) => origin.clone(),
        Target::Service { .. } => return Err(TargetError::NoCluster),
    };
    check_consent(options, &origin)?;
    let tls = if origin.tls {
        let ca = trust
            .ca
            .as_ref()
            .map(|reference| secret(options, reference, environment))
            .transpose()?;
        Some(client_config(ca.as_ref().map(Secret::expose))?)
    } else {
        None
    };
    let credential = match &trust.credential {
        Some(named) => Credential {
            kind: named.kind,
            secret: secret(options, &named.secret, environment)?,
        },
        None => default_credential(environment)?,
    };
    Ok(ResolvedTarget {
        endpoint: Endpoint {
            origin,
            address: None,
            tls,
            server_name: trust.server_name.clone(),
        },
        credential,
        beside_gateway: "on the gateway's host or in its container: ".to_owned(),
    })
}

fn check_consent(options: &Options, origin: &Origin) -> Result<(), TargetError> {
    if origin.is_loopback() {
        return Ok(());
    }
    if !origin.tls && !options.allow_insecure_urls {
        return Err(TargetError::InsecureUrl(origin.consent()));
    }
    if options
        .allow_endpoints
        .iter()
        .any(|given| origin.is_consented_by(given))
    {
        return Ok(());
    }
    Err(TargetError::EndpointNotAllowed {
        secret: "Whoever runs sync".to_owned(),
        origin: origin.consent(),
        command: format!("gatewaytrust sync --allow-endpoint {} ...", origin.consent()),
    })
}

fn read_file(path: &Path, shown: &str) -> Result<Secret, TargetError> {
    let look = || format!("ls -l {}", path.display());
    match std::fs::read_to_string(path) {
        Ok(text) if text.trim().is_empty() => Err(TargetError::SecretKeyMissing(
            shown.to_owned(),
            "content".to_owned(),
            look(),
        )),
        Ok(text) => Ok(Secret::new(&text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(TargetError::SecretNotFound(shown.to_owned(), look()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            Err(TargetError::SecretForbidden(shown.to_owned(), look()))
        }
        Err(error) => Err(TargetError::Unavailable(shown.to_owned(), error.kind().to_string())),
    }
}

/// A secret by its reference: with `--secrets-dir` the file `NAME/KEY` below it; without, the environment variable KEY,
/// or the file that the variable KEY_FILE names.
fn secret(
    options: &Options,
    reference: &SecretKeyReference,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Secret, TargetError> {
    if let Some(folder) = &options.secrets_dir {
        let path = folder.join(&reference.name).join(&reference.key);
        let safe = ![&reference.name, &reference.key]
            .iter()
            .any(|part| part.contains('/') || part.starts_with('.'));
        let shown = format!("File {}", path.display());
        return if safe {
            read_file(&path, &shown)
        } else {
            Err(TargetError::SecretNotFound(
                shown,
                format!("ls -l {}", folder.display()),
            ))
        };
    }
    from_environment(&reference.key, environment)?.ok_or_else(|| {
        let what = format!(
            "Environment variable {} (or {}_FILE, or --secrets-dir with {}/{})",
            reference.key, reference.key, reference.name, reference.key
        );
        TargetError::SecretNotFound(what, format!("printenv {} | wc -c", reference.key))
    })
}

fn from_environment(name: &str, environment: &dyn Fn(&str) -> Option<String>) -> Result<Option<Secret>, TargetError> {
    if let Some(value) = environment(name) {
        return if value.trim().is_empty() {
            Err(TargetError::SecretKeyMissing(
                format!("Environment variable {name}"),
                "value".to_owned(),
                format!("printenv {name} | wc -c"),
            ))
        } else {
            Ok(Some(Secret::new(&value)))
        };
    }
    match environment(&format!("{name}_FILE")) {
        Some(path) => read_file(Path::new(&path), &format!("File {path} ({name}_FILE)")).map(Some),
        None => Ok(None),
    }
}

fn default_credential(environment: &dyn Fn(&str) -> Option<String>) -> Result<Credential, TargetError> {
    for (variable, kind) in CREDENTIAL_VARIABLES
        .iter()
        .zip([CredentialKind::Token, CredentialKind::Password])
    {
        if let Some(secret) = from_environment(variable, environment)? {
            return Ok(Credential { kind, secret });
        }
    }
    Err(TargetError::CredentialNotFound(
        "neither OPENCLAW_GATEWAY_TOKEN (or OPENCLAW_GATEWAY_TOKEN_FILE) nor OPENCLAW_GATEWAY_PASSWORD is set"
            .to_owned(),
    ))
}
