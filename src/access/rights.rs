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

/// Whether a binding in this namespace, or in none, is one that some ClusterAccess asks for.
pub fn is_wanted(all: &BTreeMap<String, Rights>, namespace: Option<&str>, binding: &str) -> bool {
    all.iter().any(|(access, rights)| {
        let there = namespace.map_or(rights.namespaces.is_empty(), |namespace| rights.namespaces.contains(namespace));
        there && rights.binding(access) == binding
    })
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
    fn what_nobody_asks_for_any_more_is_not_wanted() {
        let all = BTreeMap::from([("a".to_owned(), rights("view", &[])), ("b".to_owned(), rights("edit", &["x"]))]);
        for (namespace, name, wanted) in [
            (None, "giantnetes:access:a:view", true),
            (Some("x"), "giantnetes:access:b:edit", true),
            // Of another role, in another place, of another ClusterAccess.
            (None, "giantnetes:access:a:edit", false),
            (Some("x"), "giantnetes:access:a:view", false),
            (None, "giantnetes:access:b:edit", false),
            (Some("y"), "giantnetes:access:b:edit", false),
            (None, "giantnetes:access:c:view", false),
        ] {
            assert_eq!(is_wanted(&all, namespace, name), wanted, "{namespace:?} {name}");
        }
    }
}
