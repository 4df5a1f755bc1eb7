//! Giantnetes makes Kubernetes clusters out of a Kubernetes cluster.
//!
//! One process runs all reconcilers as tasks over one shared cache:
//!
//! ```text
//!              Cluster, ClusterAccess, NetworkClaim         users: kubectl, Helm, Prometheus
//!                    │ watch                                        ▲ status, metrics
//!  ┌─────────────────▼──────────────────── giantnetes run ──────────┴──────────────┐
//!  │ cache: one watch per kind; a change wakes the Cluster it belongs to             │
//!  │   ↓ key                                                                        │
//!  │ micro-operators: network · pki · kvm · isolation · guest · access              │
//!  │   each: observe (cache) → plan (pure) → apply → report                         │
//!  │   ↓ reports (in memory)                                                        │
//!  │ cluster: identity, order, deletion, the only writer of Cluster status          │
//!  └────────┬───────────────────────────────────────────────┬──────────────────────┘
//!      Kubernetes                                        guest APIs
//! ```
//!
//! - [`api`]: what users write
//! - [`runtime`]: the operator kit, which knows nothing about clusters
//! - [`context`]: what every micro-operator is given
//! - [`settings`]: what the operator of the management cluster decides
//! - [`cluster`]: identity, validation, order of work, deletion, status
//! - [`network`]: VNI claims, addresses, the Service in front of a guest's API
//! - [`flannel`]: the overlay of flanneld, and its etcd
//! - [`pki`]: roots, certificates, kubeconfig
//! - [`access`]: users' certificates and kubeconfigs
//! - [`node_config`]: what runs inside a guest node
//! - [`kvm`]: VM pods and their volumes
//! - [`aws`]: stacks of guests on AWS (feature `aws`)
//! - [`node_agent`]: what a node on AWS gets its certificates by (feature `aws`)
//! - [`rollout`]: which node may change next
//! - [`isolation`]: whether VM pods reach what they must not
//! - [`guest`]: rights and nodes inside a guest
//! - [`supervisor`]: what runs inside a VM pod beside QEMU
//! - [`device_plugin`]: which hosts offer KVM to VM pods
//! - [`cli`]: the subcommands
//!
//! A micro-operator never calls another; it reads the cache and the others' reports. In each of them `plan` decides,
//! without a client, a clock or randomness, and `reconcile` acts.

pub mod access;
pub mod api;
#[cfg(feature = "aws")]
pub mod aws;
pub mod cli;
pub mod cluster;
pub mod context;
pub mod device_plugin;
pub mod flannel;
pub mod guest;
pub mod isolation;
pub mod kvm;
pub mod network;
#[cfg(feature = "aws")]
pub mod node_agent;
pub mod node_config;
pub mod pki;
pub mod rollout;
pub mod runtime;
pub mod settings;
pub mod supervisor;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod testing;
