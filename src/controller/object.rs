//! Small writes to objects of the API server: finalizers and statuses, guarded against writing over others.

use kube::api::{Api, Patch, PatchParams};
use kube::core::NamespaceResourceScope;
use kube::{Client, Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use thiserror::Error;

/// The field manager of everything that the operator writes.
pub const FIELD_MANAGER: &str = "gatewaytrust";

/// A call to the API server that failed.
#[derive(Debug, Error)]
pub enum ObjectError {
    /// A write was refused or got lost.
    #[error("{what} of {object}: {problem}")]
    Write {
        /// What was written.
        what: &'static str,
        /// To which object.
        object: String,
        /// What came back.
        problem: String,
    },
}

/// What went wrong with a call to the API server, without the body of any answer but its reason.
pub fn describe(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.reason.is_empty() => format!("HTTP {}", status.code),
        kube::Error::Api(status) => format!("{} (HTTP {})", status.reason, status.code),
        kube::Error::HyperError(_) | kube::Error::Service(_) => "the API server cannot be reached".to_owned(),
        kube::Error::SerdeError(_) => "the answer has another shape than expected".to_owned(),
        kube::Error::Auth(_) => "signing in to the API server failed (see the kubeconfig's user)".to_owned(),
        kube::Error::InferConfig(_) | kube::Error::InferKubeconfig(_) => "there is no usable kubeconfig".to_owned(),
        // The rest may quote what was sent or answered.
        _ => "the call failed".to_owned(),
    }
}

trait Namespaced:
    Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + std::fmt::Debug
{
}
impl<K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + std::fmt::Debug>
    Namespaced for K
{
}

fn api<K: Namespaced>(client: &Client, namespace: &str) -> Api<K> {
    Api::namespaced(client.clone(), namespace)
}

/// Adds the finalizer, if it is not there.
///
/// # Errors
/// [`ObjectError`]; also when the object changed meanwhile, which a later try sees.
pub async fn add_finalizer<K>(client: &Client, object: &K, finalizer: &str) -> Result<(), ObjectError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
{
    if object.finalizers().iter().any(|known| known == finalizer) {
        return Ok(());
    }
    let finalizers = object
        .finalizers()
        .iter()
        .map(String::as_str)
        .chain([finalizer])
        .collect();
    set_finalizers(client, object, finalizers).await
}

/// Removes the finalizer, if it is there.
///
/// # Errors
/// As [`add_finalizer`].
pub async fn remove_finalizer<K>(client: &Client, object: &K, finalizer: &str) -> Result<(), ObjectError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
{
    if !object.finalizers().iter().any(|known| known == finalizer) {
        return Ok(());
    }
    let finalizers = object
        .finalizers()
        .iter()
        .map(String::as_str)
        .filter(|known| *known != finalizer)
        .collect();
    set_finalizers(client, object, finalizers).await
}

async fn set_finalizers<K: Namespaced>(client: &Client, object: &K, finalizers: Vec<&str>) -> Result<(), ObjectError> {
    // The resourceVersion makes it fail where somebody changed the object meanwhile, as other finalizers may have.
    let patch = json!({"metadata": {"resourceVersion": object.resource_version(), "finalizers": finalizers}});
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    match api::<K>(client, &namespace)
        .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
        .await
    {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(ObjectError::Write {
            what: "finalizers",
            object: format!("{namespace}/{name}"),
            problem: describe(&error),
        }),
    }
}

/// Writes a status by server-side apply. An object that is gone has no status to write: that is no error.
///
/// # Errors
/// [`ObjectError`].
pub async fn apply_status<K>(
    client: &Client,
    namespace: &str,
    name: &str,
    status: &impl Serialize,
) -> Result<(), ObjectError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let document = json!({"apiVersion": K::api_version(&()), "kind": K::kind(&()), "metadata": {"name": name, "namespace": namespace}, "status": status});
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    match api::<K>(client, namespace)
        .patch_status(name, &parameters, &Patch::Apply(document))
        .await
    {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(answer)) if answer.code == 404 => Ok(()),
        Err(error) => Err(ObjectError::Write {
            what: "status",
            object: format!("{namespace}/{name}"),
            problem: describe(&error),
        }),
    }
}
