# What the controller manager may do in Vault besides vault-policy.hcl, where guests are on AWS: say which instances log in.
# Whatever it says, who logs in has no policy but that of nodes, and Vault's default one.
#
#   vault policy write giantnetes-aws vault-manager-policy.hcl

path "auth/giantnetes-aws/role/g8s-*" {
  capabilities       = ["create", "read", "update", "delete"]
  allowed_parameters = {
    "auth_type"               = ["iam"]
    "bound_iam_principal_arn" = []
    "resolve_aws_unique_ids"  = [false]
    "token_max_ttl"           = []
    "token_no_default_policy" = [true]
    "token_policies"          = ["giantnetes-nodes"]
    "token_ttl"               = []
    "token_type"              = ["batch"]
  }
}

# Keys that nobody signs, for control-plane nodes. It has them anyway, and need not read them here.
path "giantnetes-keys/+" {
  capabilities = ["create", "update", "delete"]
}
