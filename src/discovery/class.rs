//! The class of an Ingress. Pure.

use crate::cluster::{IngressView, Snapshot};

/// The class of an Ingress: the name it gives, and the controller that its IngressClass names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// Name of the IngressClass, or the value of the old annotation.
    pub name: String,
    /// `spec.controller`; none where only the old annotation names a class without an IngressClass object.
    pub controller: Option<String>,
    /// Whether only the old annotation names it.
    pub by_annotation: bool,
}

impl Class {
    /// The class that an Ingress names: by its field, by the old annotation, or the default one.
    pub fn of(snapshot: &Snapshot, ingress: &IngressView) -> Option<Self> {
        let named = |name: &str, by_annotation: bool| Class {
            name: name.to_owned(),
            controller: snapshot.ingress_classes.get(name).map(|class| class.controller.clone()),
            by_annotation,
        };
        if let Some(name) = &ingress.class {
            return Some(named(name, false));
        }
        if let Some(name) = &ingress.class_annotation {
            return Some(named(name, true));
        }
        let (name, class) = snapshot.ingress_classes.iter().find(|(_, class)| class.default)?;
        Some(Class {
            name: name.clone(),
            controller: Some(class.controller.clone()),
            by_annotation: false,
        })
    }
}
