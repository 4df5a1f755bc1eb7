//! Flannel as a guest's overlay: an etcd of the management side, in which every guest has a prefix, a user and a role, and
//! flanneld beside each VM, which carries what stands there into the kernel ([`crate::supervisor::flannel`]).
//!
//! flanneld decides nothing. Which subnet a node has follows from its place, so this operator writes whole leases. All of it
//! is derived: an etcd that lost its data has it again after a look.
//!
//! - [`certificates`]: of etcd and of its clients; pure
//! - [`etcd`]: a client of etcd
//! - [`install`]: sets that etcd up
//! - [`lease`]: keys and values, as flanneld reads and writes them; pure
//! - [`plan`]: which leases there are; pure
//! - [`reconcile`]: the effects for one guest
//! - [`server`]: what leads to that etcd

pub mod certificates;
pub mod etcd;
pub mod install;
pub mod lease;
pub mod plan;
pub mod reconcile;
pub mod server;
