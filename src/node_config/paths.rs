//! Names of the keys and certificates that a node finds under [`PKI`]: also the keys of its Secret.

/// Folder (a tmpfs) of all keys and certificates inside a node.
pub const PKI: &str = "/etc/kubernetes/pki";
/// Where the VM pod's Secret volume is mounted in the node, over 9p.
pub const PKI_SOURCE: &str = "/run/giantnetes/pki";
/// 9p mount tag of the VM pod's Secret volume.
pub const PKI_MOUNT_TAG: &str = "pki";
/// virtio serial of the disk that holds etcd's data.
pub const ETCD_DISK_SERIAL: &str = "etcd";

/// Certificate of the Kubernetes CA.
pub const CA: &str = "ca.crt";
/// Certificate of the etcd CA.
pub const ETCD_CA: &str = "etcd-ca.crt";
/// Certificate of the front-proxy CA.
pub const FRONT_PROXY_CA: &str = "front-proxy-ca.crt";
/// Private key that signs service-account tokens.
pub const SERVICE_ACCOUNT_KEY: &str = "sa.key";
/// Public key that verifies them.
pub const SERVICE_ACCOUNT_PUB: &str = "sa.pub";
/// The API server's `EncryptionConfiguration`.
pub const ENCRYPTION: &str = "encryption.yaml";

/// Units that are to be started anew for other authorities, `UNIT=MARK` a line; only while they are rotated.
pub const TURN: &str = "turn";

/// How far the node is in a rotation of authorities; only while they are rotated.
pub const MARK: &str = "authorities";

/// Certificate file of a leaf, such as `apiserver.crt`.
pub fn certificate(leaf: &str) -> String {
    format!("{leaf}.crt")
}

/// Private key file of a leaf, such as `apiserver.key`.
pub fn key(leaf: &str) -> String {
    format!("{leaf}.key")
}

/// Absolute path of a file of the PKI folder.
pub fn in_pki(file: impl AsRef<str>) -> String {
    format!("{PKI}/{}", file.as_ref())
}
