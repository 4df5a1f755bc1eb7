//! A kubeconfig with everything inside.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use secrecy::{ExposeSecret as _, SecretString};

use super::embedded::Pair;

/// Server name that is asked of the API's certificate, whatever address it is reached at.
pub const TLS_SERVER_NAME: &str = "kubernetes";

/// Renders a kubeconfig for `user` of the guest `cluster`.
pub fn render(cluster: &str, user: &str, endpoint: &str, ca: &str, client: &Pair) -> SecretString {
    // A host name is what an ingress controller tells guests apart by, and in the certificate; an address is not.
    let host = endpoint.trim_start_matches("https://").rsplit_once(':').map_or(endpoint, |(host, _)| host);
    let by_address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok();
    let server_name = if by_address { format!("    tls-server-name: {TLS_SERVER_NAME}\n") } else { String::new() };
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: \"{cluster}\"\n  cluster:\n    server: {endpoint}\n{server_name}    certificate-authority-data: {ca}\nusers:\n- name: \"{user}\"\n  user:\n    client-certificate-data: {certificate}\n    client-key-data: {key}\ncontexts:\n- name: \"{cluster}\"\n  context: {{cluster: \"{cluster}\", user: \"{user}\"}}\ncurrent-context: \"{cluster}\"\n",
        ca = STANDARD.encode(ca),
        certificate = STANDARD.encode(&client.certificate),
        key = STANDARD.encode(client.key.expose_secret()),
    )
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_yaml_with_the_material_inside() {
        let pair = Pair { certificate: "CERT".into(), key: "KEY".into() };
        for name in ["123", "no", "1e3", "null", "demo"] {
            let text = render(name, "administrator", "https://10.0.0.1:6443", "CA", &pair);
            let value: serde_json::Value = serde_saphyr::from_str(text.expose_secret()).unwrap();
            assert_eq!((&value["current-context"], &value["clusters"][0]["name"]), (&name.into(), &name.into()));
        }
        let text = render("demo", "administrator", "https://10.0.0.1:6443", "CA", &pair);
        let value: serde_json::Value = serde_saphyr::from_str(text.expose_secret()).unwrap();
        assert_eq!(value["clusters"][0]["cluster"]["certificate-authority-data"], STANDARD.encode("CA"));
        assert_eq!(value["users"][0]["user"]["client-key-data"], STANDARD.encode("KEY"));
        assert_eq!(value["current-context"], "demo");
        assert_eq!(value["clusters"][0]["cluster"]["tls-server-name"], "kubernetes");
        let text = render("demo", "administrator", "https://[2001:db8::1]:6443", "CA", &pair);
        assert!(text.expose_secret().contains("tls-server-name"));
        for endpoint in ["https://a.example.com", "https://a.example.com:10443"] {
            let text = render("demo", "administrator", endpoint, "CA", &pair);
            let value: serde_json::Value = serde_saphyr::from_str(text.expose_secret()).unwrap();
            let cluster = &value["clusters"][0]["cluster"];
            assert_eq!((&cluster["server"], cluster.get("tls-server-name")), (&endpoint.into(), None));
        }
    }
}
