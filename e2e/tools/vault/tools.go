//go:build tools

// Package tools pins the command that the lab builds from this module.
package tools

import _ "github.com/hashicorp/vault"
