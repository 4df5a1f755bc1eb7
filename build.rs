//! Writes the client and server sides of kubelet's device-plugin API, of which the messages are in
//! `src/device_plugin/api.rs`. Its services are few and frozen, so nobody needs a compiler of protocol buffers.

use tonic_build::manual::{Builder, Method, MethodBuilder, Service};

/// The package that both services are in, which is part of their calls' paths.
const PACKAGE: &str = "v1beta1";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
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
    Builder::new().compile(&[registration, plugin]);
}

fn method(name: &str, route: &str, input: &str, output: &str) -> MethodBuilder {
    let message = |name: &str| format!("crate::device_plugin::api::{name}");
    Method::builder()
        .name(name)
        .route_name(route)
        .input_type(message(input))
        .output_type(message(output))
        .codec_path("tonic_prost::ProstCodec")
}
