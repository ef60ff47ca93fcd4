// Package guestbin carries roost-guest inside roost. The Makefile builds the guest into
// embed/ before it builds roost; a roost built without it says so when it needs the guest.
package guestbin

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"sync"

	"github.com/roosthq/roost/internal/fault"
)

//go:embed all:embed
var files embed.FS

// Binary is the guest agent's executable.
func Binary() ([]byte, error) {
	b, err := files.ReadFile("embed/roost-guest")
	if err != nil {
		return nil, fault.New(fault.FailedPrecondition, "load", "roost-guest",
			"this roost was built without its guest agent").WithHint("build with `make build`")
	}
	return b, nil
}

// Digest is the SHA-256 of Binary in hex, or "" when there is none.
var Digest = sync.OnceValue(func() string {
	b, err := Binary()
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
})
