//! The overlay of [Flannel](https://github.com/flannel-io/flannel), beside the one of our own. It is on its way: nothing asks
//! for it yet, and no Cluster can have it.
//!
//! flanneld is to decide nothing: a node's place decides its subnet, the controller manager writes the lease, and flanneld carries
//! leases into the kernel. For that each guest has a prefix of keys in one etcd, and a user whose rights end with it.
//!
//! - [`lease`]: the keys of a guest and what is written there; pure
//! - [`etcd`]: a client of that etcd, and the rights of guests in it

pub mod etcd;
pub mod lease;
