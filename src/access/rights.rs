//! Rights of users inside their guests: the bindings that ClusterAccesses ask for. Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::rbac::v1::{ClusterRoleBinding, RoleBinding, RoleRef, Subject},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use crate::api::{Reason, names};

const RBAC: &str = "rbac.authorization.k8s.io";

/// Rights of a user, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rights {
    /// The user, as certificates call it.
    pub user: String,
    /// A ClusterRole of the guest.
    pub cluster_role: String,
    /// Namespaces of the guest; none: everywhere.
    pub namespaces: BTreeSet<String>,
}

/// What came of binding a user's rights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Which these were.
    pub rights: Rights,
    /// Why they are not all bound, and of which sort that is.
    pub problem: Option<(Reason, String)>,
}

/// What came of it for each ClusterAccess of a guest, by name.
pub type AllBound = BTreeMap<String, Bound>;

impl Rights {
    /// Name of the bindings for the ClusterAccess called `access`. What role a binding gives is fixed for its life, so each
    /// role has a binding of its own.
    pub fn binding(&self, access: &str) -> String {
        format!("giantnetes:access:{access}:{}", self.cluster_role)
    }

    /// The binding for the whole guest, if the rights are not for some namespaces alone.
    pub fn everywhere(&self, access: &str) -> Option<ClusterRoleBinding> {
        self.namespaces.is_empty().then(|| ClusterRoleBinding {
            metadata: self.metadata(access, None),
            role_ref: self.role(),
            subjects: Some(vec![self.subject()]),
        })
    }

    /// The bindings in namespaces.
    pub fn in_namespaces(&self, access: &str) -> Vec<RoleBinding> {
        let binding = |namespace: &String| RoleBinding {
            metadata: self.metadata(access, Some(namespace)),
            role_ref: self.role(),
            subjects: Some(vec![self.subject()]),
        };
        self.namespaces.iter().map(binding).collect()
    }

    fn metadata(&self, access: &str, namespace: Option<&String>) -> ObjectMeta {
        let labels = [(names::MANAGED_BY_LABEL, names::MANAGER), (names::ACCESS_LABEL, "true")];
        ObjectMeta {
            name: Some(self.binding(access)),
            namespace: namespace.cloned(),
            labels: Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
            ..ObjectMeta::default()
        }
    }

    fn role(&self) -> RoleRef {
        RoleRef { api_group: Some(RBAC.into()), kind: "ClusterRole".into(), name: self.cluster_role.clone() }
    }

    fn subject(&self) -> Subject {
        Subject { api_group: Some(RBAC.into()), kind: "User".into(), name: self.user.clone(), namespace: None }
    }
}

/// Namespace, if it is in one, and name of a binding.
pub type Place = (Option<String>, String);

/// Where a binding is.
pub fn place(meta: &ObjectMeta) -> Place {
    (meta.namespace.clone(), meta.name.clone().unwrap_or_default())
}

/// Where the bindings are that the ClusterAccess called `access` asks for.
pub fn places(access: &str, rights: &Rights) -> Vec<Place> {
    let name = rights.binding(access);
    if rights.namespaces.is_empty() {
        return vec![(None, name)];
    }
    rights.namespaces.iter().map(|namespace| (Some(namespace.clone()), name.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rights(role: &str, namespaces: &[&str]) -> Rights {
        let namespaces = namespaces.iter().map(ToString::to_string).collect();
        Rights { user: "alice".into(), cluster_role: role.into(), namespaces }
    }

    #[test]
    fn rights_are_for_everywhere_or_for_the_namespaces_that_are_named() {
        let everywhere = rights("view", &[]);
        let binding = everywhere.everywhere("a").unwrap();
        assert_eq!(binding.metadata.name.as_deref(), Some("giantnetes:access:a:view"));
        assert_eq!((binding.role_ref.kind.as_str(), binding.role_ref.name.as_str()), ("ClusterRole", "view"));
        let subject = &binding.subjects.unwrap()[0];
        assert_eq!((subject.kind.as_str(), subject.name.as_str()), ("User", "alice"));
        assert!(everywhere.in_namespaces("a").is_empty());

        let somewhere = rights("edit", &["x", "y"]);
        assert!(somewhere.everywhere("a").is_none());
        let namespaces: Vec<_> =
            somewhere.in_namespaces("a").into_iter().filter_map(|binding| binding.metadata.namespace).collect();
        assert_eq!(namespaces, ["x", "y"]);
    }

    #[test]
    fn each_binding_has_a_place_of_its_own() {
        let name = |text: &str| text.to_owned();
        assert_eq!(places("a", &rights("view", &[])), [(None, name("giantnetes:access:a:view"))]);
        let edit = name("giantnetes:access:b:edit");
        let both = [(Some(name("x")), edit.clone()), (Some(name("y")), edit)];
        assert_eq!(places("b", &rights("edit", &["y", "x"])), both);
    }
}
