package sandbox

import (
	"regexp"

	"github.com/roosthq/roost/internal/fault"
)

var idShape = regexp.MustCompile(`^[a-z0-9]{20}$`)

// checkID refuses what cannot be an id before anything is asked about it.
func checkID(id string) error {
	if idShape.MatchString(id) {
		return nil
	}
	return fault.New(fault.NotFound, "find", "sandbox "+clip(id), "that is not a sandbox id").
		WithHint("ids have 20 lower-case letters and digits: roost ls")
}

// clip keeps a caller's text from filling an error.
func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}
