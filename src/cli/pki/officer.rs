//! Who exports keys that are in Vault: an escrow officer, who logs in to Vault by himself, with the variables of Vault's own client.

use std::{env, fs, path::PathBuf};

use secrecy::SecretString;

use super::super::Failure;
use crate::{
    api::VaultPlace,
    pki::{
        authority::Kept,
        leaf::Authority,
        roots::{Root, Roots},
        vault::{
            VaultError,
            client::{Address, Connection},
            escrow,
        },
    },
    runtime::chain,
};

/// Where Vault's own client puts a token, in the home directory.
const TOKEN_FILE: &str = ".vault-token";

#[derive(Debug, clap::Args)]
pub(super) struct Officer {
    /// Vault's URL, where it has the keys of this guest. Default: that of the Cluster's status.
    #[arg(long, env = "VAULT_ADDR", value_name = "URL")]
    vault_address: Option<String>,
    /// File with certificates (PEM) of the authorities that Vault's own may be of. The token is that of VAULT_TOKEN or ~/.vault-token.
    #[arg(long, env = "VAULT_CACERT", value_name = "FILE")]
    vault_ca: Option<PathBuf>,
    /// Vault's namespace. Default: that of the Cluster's status.
    #[arg(long, env = "VAULT_NAMESPACE", value_name = "NAMESPACE")]
    vault_namespace: Option<String>,
}

impl Officer {
    /// The roots with the keys that are in Vault.
    pub(super) async fn take_out(&self, place: &VaultPlace, roots: Roots) -> Result<Roots, Failure> {
        let connection = self.connect(place)?;
        Ok(Roots {
            kubernetes: taken_out(&connection, Authority::Kubernetes, &roots).await?,
            etcd: taken_out(&connection, Authority::Etcd, &roots).await?,
            front_proxy: taken_out(&connection, Authority::FrontProxy, &roots).await?,
            ..roots
        })
    }

    fn connect(&self, place: &VaultPlace) -> Result<Connection, Failure> {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let address = given(&self.vault_address).unwrap_or_else(|| place.address.clone());
        if !address.starts_with("https://") {
            return Err(format!("{address} is no https:// address: keys would come in the clear").into());
        }
        let file =
            self.vault_ca.as_ref().ok_or("say by VAULT_CACERT (--vault-ca) by what Vault's certificate is known")?;
        let ca_certificate = fs::read_to_string(file).map_err(|error| format!("read {}: {error}", file.display()))?;
        let namespace = given(&self.vault_namespace).or_else(|| place.namespace.clone());
        let token = token(env::var("VAULT_TOKEN").ok(), env::var_os("HOME").map(PathBuf::from))?;
        let address = Address { address, ca_certificate, namespace };
        Ok(Connection::with_token(address, token).map_err(|error| chain(&error))?)
    }
}

/// The token of whoever exports: the variable, or else the file that `vault login` writes.
fn token(variable: Option<String>, home: Option<PathBuf>) -> Result<SecretString, Failure> {
    let file = || fs::read_to_string(home?.join(TOKEN_FILE)).ok();
    let token = variable.filter(|token| !token.trim().is_empty()).or_else(file);
    let token = token.ok_or("log in to Vault first: there is neither VAULT_TOKEN nor ~/.vault-token")?;
    Ok(token.trim().into())
}

async fn taken_out(connection: &Connection, of: Authority, roots: &Roots) -> Result<Kept, Failure> {
    let name = Root::Ca(of).name();
    let kept = roots.authority(of);
    let Some(authority) = kept.in_vault() else { return Ok(kept.clone()) };
    let found = escrow::read(connection, of, authority).await.map_err(|error| refused(&error))?;
    let lacks =
        || format!("Vault has no key of the {name} authority beside mount {}: nothing was exported", authority.mount);
    let pair = found.ok_or_else(lacks)?;
    if pair.certificate != authority.certificate {
        return Err(
            format!("what Vault has of the {name} authority is of another certificate: nothing was exported").into()
        );
    }
    Ok(Kept::Here(pair))
}

fn refused(error: &VaultError) -> String {
    match error {
        VaultError::Denied { path, said, .. } => format!(
            "Vault refuses to read {path}: {said}; nothing was exported. That takes a token with the policy of escrow officers, \
             files/vault-escrow-policy.hcl of the chart"
        ),
        error => format!("{}; nothing was exported", chain(error)),
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    #[test]
    fn a_token_is_the_variables_or_that_of_vaults_own_client() {
        let home = env::temp_dir().join(format!("giantnetes-officer-{}", std::process::id()));
        fs::create_dir_all(&home).unwrap();
        let of = |variable: Option<&str>| {
            token(variable.map(Into::into), Some(home.clone())).map(|token| token.expose_secret().to_owned())
        };
        assert!(of(None).unwrap_err().to_string().contains("log in to Vault first"));
        fs::write(home.join(TOKEN_FILE), "file\n").unwrap();
        assert_eq!(
            [of(Some("variable\n")).unwrap(), of(Some("")).unwrap(), of(None).unwrap()],
            ["variable", "file", "file"]
        );
        fs::remove_dir_all(&home).unwrap();
    }
}
