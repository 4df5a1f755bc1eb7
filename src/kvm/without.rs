//! What a VM pod would have of its host, and does without where no host can give it. A scheduler knows no such wishes: it is
//! asked for them, and if it finds no host, the pod is made anew without.

use std::fmt;

use super::vm_pod::VmPod;
use crate::api::names;

const KVM: &str = "kvm";
const OWN_HOST: &str = "own-host";

/// What a VM pod does without, as [`names::DOES_WITHOUT_ANNOTATION`] says it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Without {
    /// KVM, of a Cluster that takes what is there.
    pub kvm: bool,
    /// A host that no other control-plane node of its guest is on.
    pub own_host: bool,
}

impl Without {
    /// What this pod has to do without if it is to find a host. None: it has one, or that would not help it.
    ///
    /// The scheduler looks at resources first: where it finds fault with who else is on a host, the host has all else, and KVM
    /// if that was asked for. Emulation is the last resort, since it keeps tenants less well apart.
    pub(super) fn next(pod: &VmPod, may_emulate: bool, may_share: bool) -> Option<Self> {
        let now = Self::of(pod);
        if may_share && !now.own_host && pod.lacks_own_host() {
            return Some(Self { own_host: true, ..now });
        }
        (may_emulate && !now.kvm && pod.lacks_kvm()).then_some(Self { kvm: true, ..now })
    }

    fn of(pod: &VmPod) -> Self {
        let annotations = pod.metadata.annotations.as_ref();
        let said = annotations.and_then(|all| all.get(names::DOES_WITHOUT_ANNOTATION)).map_or("", String::as_str);
        let has = |word| said.split(',').any(|said| said == word);
        Self { kvm: has(KVM), own_host: has(OWN_HOST) }
    }
}

impl fmt::Display for Without {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = [(self.kvm, KVM), (self.own_host, OWN_HOST)];
        let said: Vec<_> = words.into_iter().filter(|(does, _)| *does).map(|(_, word)| word).collect();
        f.write_str(&said.join(","))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(without: &str, message: &str) -> VmPod {
        let condition = json!({"type": "PodScheduled", "status": "False", "message": message});
        let annotations = json!({names::DOES_WITHOUT_ANNOTATION: without});
        serde_json::from_value(json!({
            "metadata": {"name": "master-0", "annotations": annotations}, "status": {"conditions": [condition]},
        }))
        .unwrap()
    }

    #[test]
    fn one_wish_after_the_other_is_given_up_and_none_comes_back() {
        let both = "0/2 nodes are available: 1 Insufficient giantnetes.io/kvm, 1 node(s) didn't match pod topology spread \
                    constraints.";
        let apart =
            "0/2 nodes are available: 1 Insufficient memory, 1 node(s) didn't match pod topology spread constraints.";
        let full = "0/2 nodes are available: 2 Insufficient giantnetes.io/kvm.";
        let next = |without, message, may_emulate, may_share| {
            Without::next(&pod(without, message), may_emulate, may_share).map(|without| without.to_string())
        };
        assert_eq!(next("", both, true, true).as_deref(), Some("own-host"));
        assert_eq!(next("own-host", full, true, true).as_deref(), Some("kvm,own-host"));
        assert_eq!(next("", full, true, true).as_deref(), Some("kvm"));
        assert_eq!(next("kvm", apart, true, true).as_deref(), Some("kvm,own-host"));
        assert_eq!(next("kvm,own-host", both, true, true), None);
        // Who asked for neither gives up neither.
        assert_eq!(next("", both, false, true).as_deref(), Some("own-host"));
        assert_eq!(next("", both, true, false).as_deref(), Some("kvm"));
        assert_eq!(next("", both, false, false), None);
        assert_eq!(next("", "0/2 nodes are available: 2 Insufficient memory.", true, true), None);
    }
}
