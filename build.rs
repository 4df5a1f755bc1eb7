//! Writes the client and server sides of kubelet's device-plugin API and of the part of etcd's that we call. Their messages are
//! in `src/device_plugin/api.rs` and `src/flannel/etcd/api.rs`. The services are few and frozen, so nobody needs a compiler of
//! protocol buffers.

use tonic_build::manual::{Builder, Method, MethodBuilder, Service};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    for services in [device_plugin(), etcd()] {
        Builder::new().compile(&services);
    }
}

/// kubelet's side of its device-plugin API, and a plugin's.
fn device_plugin() -> Vec<Service> {
    // The package is part of the calls' paths.
    const PACKAGE: &str = "v1beta1";
    let method = |name, route, input, output| method("crate::device_plugin::api", name, route, input, output);
    let registration = Service::builder()
        .name("Registration")
        .package(PACKAGE)
        .method(method("register", "Register", "RegisterRequest", "Empty").build())
        .build();
    let plugin = Service::builder()
        .name("DevicePlugin")
        .package(PACKAGE)
        .method(method("get_device_plugin_options", "GetDevicePluginOptions", "Empty", "DevicePluginOptions").build())
        .method(method("list_and_watch", "ListAndWatch", "Empty", "ListAndWatchResponse").server_streaming().build())
        .method(
            method(
                "get_preferred_allocation",
                "GetPreferredAllocation",
                "PreferredAllocationRequest",
                "PreferredAllocationResponse",
            )
            .build(),
        )
        .method(method("allocate", "Allocate", "AllocateRequest", "AllocateResponse").build())
        .method(
            method("pre_start_container", "PreStartContainer", "PreStartContainerRequest", "PreStartContainerResponse")
                .build(),
        )
        .build();
    vec![registration, plugin]
}

/// Keys, and the rights to them, of etcd's API.
fn etcd() -> Vec<Service> {
    let kv = [("range", "Range"), ("delete_range", "DeleteRange"), ("txn", "Txn")];
    let auth = [
        ("auth_enable", "AuthEnable"),
        ("auth_status", "AuthStatus"),
        ("user_add", "UserAdd"),
        ("user_get", "UserGet"),
        ("user_list", "UserList"),
        ("user_delete", "UserDelete"),
        ("user_grant_role", "UserGrantRole"),
        ("role_add", "RoleAdd"),
        ("role_get", "RoleGet"),
        ("role_list", "RoleList"),
        ("role_delete", "RoleDelete"),
        ("role_grant_permission", "RoleGrantPermission"),
    ];
    // Messages are named after their calls, those of rights with `Auth` in front.
    let service = |service: &str, prefix: &str, calls: &[(&str, &str)]| {
        let calls = calls.iter().map(|(name, route)| {
            let message = if route.starts_with(prefix) { (*route).to_owned() } else { format!("{prefix}{route}") };
            let (input, output) = (format!("{message}Request"), format!("{message}Response"));
            method("crate::flannel::etcd::api", name, route, &input, &output).build()
        });
        calls.fold(Service::builder().name(service).package("etcdserverpb"), |all, call| all.method(call)).build()
    };
    vec![service("KV", "", &kv), service("Auth", "Auth", &auth)]
}

/// A call of these messages, which the module `messages` has.
fn method(messages: &str, name: &str, route: &str, input: &str, output: &str) -> MethodBuilder {
    let message = |name: &str| format!("{messages}::{name}");
    Method::builder()
        .name(name)
        .route_name(route)
        .input_type(message(input))
        .output_type(message(output))
        .codec_path("tonic_prost::ProstCodec")
}
