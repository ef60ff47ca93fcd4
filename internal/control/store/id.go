package store

import (
	"crypto/rand"
	"strings"
)

// NewID makes an id of a sandbox, a template or an operation: 100 random bits in base 32.
func NewID() string { return strings.ToLower(rand.Text())[:20] }
