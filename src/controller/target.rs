//! Where a gateway of the cluster is, and what to sign in with. Read live before every connection: this decides where
//! a secret goes (`api.md`, "Safety of where secrets go").

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, ApiResource, DynamicObject, ListParams};
use kube::core::Object;
use kube::{Client, ResourceExt as _};

use super::object::describe;
use super::{Options, key_of};
use crate::api::gateway_trust::SecretKeyReference;
use crate::api::validated::{CredentialKind, CredentialReference, Origin, PortReference, Target, ValidatedTrust};
use crate::api::{ALLOW_ENDPOINT, ObjectKey};
use crate::cluster::{PodView, ServiceView, SliceView, raw};
use crate::engine::front::{ResolvedTarget, TargetError};
use crate::gateway::tls::client_config;
use crate::gateway::{Credential, Endpoint, Secret as SecretText};

type RawPod = Object<Option<raw::PodSpec>, raw::PodStatus>;
type RawService = Object<Option<raw::ServiceSpec>, serde_json::Value>;

/// Decides where to connect, and with what.
///
/// # Errors
/// [`TargetError`], with what to do.
pub async fn resolve(
    client: &Client,
    options: &Options,
    key: &ObjectKey,
    trust: &ValidatedTrust,
) -> Result<ResolvedTarget, TargetError> {
    let namespace = key.namespace.as_str();
    match &trust.target {
        Target::Url(origin) => {
            if !origin.tls && !options.allow_insecure_urls {
                return Err(TargetError::InsecureUrl(origin.consent()));
            }
            let reference = trust.credential.clone().ok_or_else(|| {
                TargetError::CredentialNotFound("a url has no pod on which it could be found".to_owned())
            })?;
            let credential = credential(client, namespace, &reference, Some(origin)).await?;
            let tls = if origin.tls {
                Some(tls(client, namespace, trust).await?)
            } else {
                None
            };
            let endpoint = Endpoint {
                origin: origin.clone(),
                address: None,
                tls,
                server_name: trust.server_name.clone(),
            };
            Ok(ResolvedTarget {
                endpoint,
                credential,
                beside_gateway: "in the gateway's container: ".to_owned(),
            })
        }
        Target::Service {
            name,
            port,
            tls: speaks_tls,
        } => {
            let service = ObjectKey::new(namespace, name);
            let (pod, address, port) = endpoint_of(client, &service, port.as_ref()).await?;
            let reference = match &trust.credential {
                Some(reference) => reference.clone(),
                None => credential_of(&pod)?,
            };
            let credential = credential(client, namespace, &reference, None).await?;
            let host = format!("{name}.{namespace}.svc");
            let origin = Origin {
                tls: *speaks_tls,
                host,
                port,
                path: "/".to_owned(),
            };
            let tls = if *speaks_tls {
                Some(tls(client, namespace, trust).await?)
            } else {
                None
            };
            let endpoint = Endpoint {
                origin,
                address: Some(address),
                tls,
                server_name: trust.server_name.clone(),
            };
            Ok(ResolvedTarget {
                endpoint,
                credential,
                beside_gateway: format!("kubectl exec -n {namespace} svc/{name} -- "),
            })
        }
    }
}

fn unavailable(what: impl Into<String>, error: &kube::Error) -> TargetError {
    TargetError::Unavailable(what.into(), describe(error))
}

/// The one ready pod behind a Service, its address, and the port there.
async fn endpoint_of(
    client: &Client,
    service: &ObjectKey,
    port: Option<&PortReference>,
) -> Result<(PodView, IpAddr, u16), TargetError> {
    let shown = service.to_string();
    let resource = ApiResource::erase::<Service>(&());
    let services: Api<RawService> = Api::namespaced_with(client.clone(), &service.namespace, &resource);
    let Some(found) = services
        .get_opt(&service.name)
        .await
        .map_err(|error| unavailable(format!("Service {shown}"), &error))?
    else {
        let pods_gone = no_gateway_pods(client, &service.namespace).await;
        return Err(TargetError::ServiceNotFound {
            namespace: service.namespace.clone(),
            name: service.name.clone(),
            pods_gone,
        });
    };
    let view = ServiceView::from(found.spec.unwrap_or_default());
    if view.external_name {
        return Err(TargetError::UnsafeService(shown, "is an ExternalName"));
    }
    if view.selector.is_empty() {
        return Err(TargetError::UnsafeService(shown, "has no selector"));
    }
    let port_name = service_port(&view, port).ok_or_else(|| TargetError::NoSuchPort(shown.clone(), port_text(port)))?;

    let slices: Api<DynamicObject> = Api::namespaced_with(
        client.clone(),
        &service.namespace,
        &ApiResource::erase::<EndpointSlice>(&()),
    );
    let selector = ListParams::default().labels(&format!("kubernetes.io/service-name={}", service.name));
    let slices = slices
        .list(&selector)
        .await
        .map_err(|error| unavailable(format!("the EndpointSlices of Service {shown}"), &error))?;
    let mut ready: BTreeMap<ObjectKey, (IpAddr, u16)> = BTreeMap::new();
    for slice in slices {
        let raw: raw::Slice = serde_json::from_value(slice.data).unwrap_or_default();
        let slice = SliceView::from(raw);
        let Some(target_port) = slice
            .ports
            .iter()
            .find(|(name, _)| *name == port_name)
            .map(|(_, number)| *number)
        else {
            continue;
        };
        for endpoint in slice.endpoints.into_iter().filter(|endpoint| endpoint.ready) {
            let Some(pod) = endpoint.pod.filter(|pod| pod.namespace == service.namespace) else {
                return Err(TargetError::UnsafeService(
                    shown,
                    "has an endpoint that is no pod of this namespace",
                ));
            };
            let Some(address) = endpoint.addresses.first() else {
                continue;
            };
            let entry = ready.entry(pod).or_insert((*address, target_port));
            if address.is_ipv4() {
                *entry = (*address, target_port);
            }
        }
    }
    let number = ready.len();
    let mut ready = ready.into_iter();
    let (Some((pod, (address, port))), None) = (ready.next(), ready.next()) else {
        return Err(if number == 0 {
            TargetError::NoReadyEndpoint(shown, service.namespace.clone())
        } else {
            TargetError::MultipleReplicas(shown, number)
        });
    };
    // Whoever can write an EndpointSlice could otherwise name any address: the pod itself must have it.
    let pods: Api<RawPod> = Api::namespaced_with(client.clone(), &pod.namespace, &ApiResource::erase::<Pod>(&()));
    let found = pods
        .get_opt(&pod.name)
        .await
        .map_err(|error| unavailable(format!("Pod {pod}"), &error))?;
    let view = found.map(|found| {
        PodView::new(
            &found.metadata,
            found.spec.unwrap_or_default(),
            found.status.unwrap_or_default(),
        )
    });
    match view.filter(|view| view.addresses.contains(&crate::cidr::canonical(address))) {
        Some(view) => Ok((view, address, port)),
        None => Err(TargetError::UnsafeService(
            shown,
            "has an endpoint whose address is not its pod's",
        )),
    }
}

fn port_text(port: Option<&PortReference>) -> String {
    match port {
        None => "(several: name one)".to_owned(),
        Some(PortReference::Name(name)) => name.clone(),
        Some(PortReference::Number(number)) => number.to_string(),
    }
}

/// The name of the Service's port that is meant. A single port may have none.
fn service_port(service: &ServiceView, port: Option<&PortReference>) -> Option<Option<String>> {
    match port {
        None => match service.ports.as_slice() {
            [(name, _)] => Some(name.clone()),
            _ => None,
        },
        Some(PortReference::Name(name)) => service
            .ports
            .iter()
            .find(|(known, _)| known.as_ref() == Some(name))
            .map(|(name, _)| name.clone()),
        Some(PortReference::Number(number)) => service
            .ports
            .iter()
            .find(|(_, known)| known == number)
            .map(|(name, _)| name.clone()),
    }
}

/// Whether no pod of the namespace could be a gateway. On doubt there is one.
async fn no_gateway_pods(client: &Client, namespace: &str) -> bool {
    let pods: Api<RawPod> = Api::namespaced_with(client.clone(), namespace, &ApiResource::erase::<Pod>(&()));
    let list = pods.list(&ListParams::default().limit(500)).await;
    list.is_ok_and(|list| list.metadata.continue_.is_none() && !list.items.iter().any(may_be_gateway))
}

/// Containers need not declare their ports, and the gateway's can be changed.
fn may_be_gateway(pod: &RawPod) -> bool {
    let finished = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .is_some_and(|phase| matches!(phase, "Succeeded" | "Failed"));
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    !finished
        && containers.into_iter().any(|container| {
            container.ports.is_empty()
                || container.ports.iter().any(|port| port.container_port == Some(18789))
                || container
                    .env
                    .iter()
                    .any(|variable| variable.name.starts_with("OPENCLAW_"))
        })
}

/// The credential that a gateway's own pod runs with.
fn credential_of(pod: &PodView) -> Result<CredentialReference, TargetError> {
    let token = |variable: &str| variable == "OPENCLAW_GATEWAY_TOKEN";
    let found = pod
        .gateway_credentials
        .iter()
        .find(|found| token(&found.variable))
        .or(pod.gateway_credentials.first());
    let found = found.ok_or_else(|| {
        TargetError::CredentialNotFound(
            "the gateway's pod has no container with port 18789 and an OPENCLAW_GATEWAY_TOKEN from a Secret".to_owned(),
        )
    })?;
    let kind = if token(&found.variable) {
        CredentialKind::Token
    } else {
        CredentialKind::Password
    };
    Ok(CredentialReference {
        kind,
        secret: SecretKeyReference {
            name: found.secret.clone(),
            key: found.key.clone(),
        },
    })
}

async fn secret(
    client: &Client,
    namespace: &str,
    reference: &SecretKeyReference,
) -> Result<(Secret, SecretText), TargetError> {
    let shown = format!("Secret {namespace}/{}", reference.name);
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let secret = match api.get_opt(&reference.name).await {
        Ok(Some(secret)) => secret,
        Ok(None) => {
            return Err(TargetError::SecretNotFound(
                shown,
                format!("kubectl get secrets -n {namespace}"),
            ));
        }
        Err(kube::Error::Api(status)) if status.code == 403 => {
            let look = format!(
                "kubectl auth can-i get secrets/{} -n {namespace} --as=system:serviceaccount:gatewaytrust:gatewaytrust",
                reference.name
            );
            return Err(TargetError::SecretForbidden(shown, look));
        }
        Err(error) => return Err(unavailable(shown, &error)),
    };
    let bytes = secret
        .data
        .as_ref()
        .and_then(|data| data.get(&reference.key))
        .map(|bytes| bytes.0.clone());
    match bytes
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .filter(|text| !text.trim().is_empty())
    {
        Some(text) => Ok((secret, SecretText::new(&text))),
        None => {
            let look = format!("kubectl describe secret -n {namespace} {}", reference.name);
            Err(TargetError::SecretKeyMissing(shown, reference.key.clone(), look))
        }
    }
}

async fn credential(
    client: &Client,
    namespace: &str,
    reference: &CredentialReference,
    url: Option<&Origin>,
) -> Result<Credential, TargetError> {
    let (object, text) = secret(client, namespace, &reference.secret).await?;
    if let Some(origin) = url
        && !object
            .annotations()
            .get(ALLOW_ENDPOINT)
            .is_some_and(|value| origin.is_consented_by(value))
    {
        let key = key_of(&object);
        return Err(TargetError::EndpointNotAllowed {
            secret: format!("Secret {namespace}/{}", key.name),
            origin: origin.consent(),
            command: format!(
                "kubectl annotate secret -n {namespace} {} --overwrite {ALLOW_ENDPOINT}={}",
                key.name,
                origin.consent()
            ),
        });
    }
    Ok(Credential {
        kind: reference.kind,
        secret: text,
    })
}

async fn tls(
    client: &Client,
    namespace: &str,
    trust: &ValidatedTrust,
) -> Result<std::sync::Arc<rustls::ClientConfig>, TargetError> {
    let ca = match &trust.ca {
        Some(reference) => Some(secret(client, namespace, reference).await?.1),
        None => None,
    };
    Ok(client_config(ca.as_ref().map(SecretText::expose))?)
}
