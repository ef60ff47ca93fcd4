package sandbox

import (
	"fmt"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/roosthq/roost/internal/fault"
)

// Limits and defaults of a new sandbox.
const (
	DefaultTemplate    = "base"
	DefaultVCPUs       = 1
	DefaultMemoryMB    = 512
	DefaultDiskSizeMB  = 5120
	DefaultIdleTimeout = 300

	maxVCPUs       = 16
	minMemoryMB    = 128
	maxMemoryMB    = 65536
	maxDiskSizeMB  = 1 << 20
	maxIdleTimeout = int(30 * 24 * time.Hour / time.Second)

	maxMetadata      = 64
	maxMetadataKey   = 128
	maxMetadataValue = 4096
	maxEnvs          = 1024
	maxEnvBytes      = 128 << 10
	maxIdemKey       = 128
	mib              = 1 << 20
)

var (
	envName      = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	templateName = regexp.MustCompile(`^[a-z0-9][a-z0-9._:/-]{0,127}$`)
	runtimeName  = regexp.MustCompile(`^[a-z0-9-]{0,32}$`)
)

// Spec is what a caller asks of a new sandbox. Zero values mean "not given": plan.go has what
// they become.
type Spec struct {
	// Template is a name or an id.
	Template   string
	VCPUs      int
	MemoryMB   int
	DiskSizeMB int
	// IdleTimeoutS is 0 for never, nil for the default.
	IdleTimeoutS *int
	Runtime      string
	// Cold boots a kernel instead of restoring the template's memory.
	Cold     bool
	Env      map[string]string
	Metadata map[string]string
}

// validate checks what needs no question to the host.
func (s *Spec) validate() error {
	checks := []error{
		given(s.Template, func() error { return matches("template", s.Template, templateName) }),
		matches("runtime", s.Runtime, runtimeName),
		given(s.VCPUs, func() error { return within("vcpus", s.VCPUs, 1, maxVCPUs) }),
		given(s.MemoryMB, func() error { return within("memory_mb", s.MemoryMB, minMemoryMB, maxMemoryMB) }),
		given(s.DiskSizeMB, func() error { return within("disk_size_mb", s.DiskSizeMB, 1, maxDiskSizeMB) }),
		checkIdle(s.IdleTimeoutS),
		CheckEnv(s.Env),
		checkMetadata(s.Metadata),
	}
	for _, err := range checks {
		if err != nil {
			return err
		}
	}
	return nil
}

// given checks a field that is not left out.
func given[T comparable](v T, check func() error) error {
	var none T
	if v == none {
		return nil
	}
	return check()
}

func checkIdle(seconds *int) error {
	if seconds == nil {
		return nil
	}
	return within("idle_timeout_s", *seconds, 0, maxIdleTimeout)
}

func invalid(field string, value any, want string) *fault.Error {
	return fault.New(fault.Invalid, "", "", fmt.Sprintf("%s is %v: %s", field, value, want))
}

func within(field string, v, low, high int) error {
	if v < low || v > high {
		return invalid(field, v, fmt.Sprintf("must be %d to %d", low, high))
	}
	return nil
}

func matches(field, v string, shape *regexp.Regexp) error {
	if !shape.MatchString(v) {
		return invalid(field, fmt.Sprintf("%q", clip(v)), "must match "+shape.String())
	}
	return nil
}

// CheckEnv checks environment variables. Their values are secrets: errors do not show them.
func CheckEnv(env map[string]string) error {
	if len(env) > maxEnvs {
		return invalid("env", fmt.Sprintf("of %d variables", len(env)), fmt.Sprintf("at most %d", maxEnvs))
	}
	total := 0
	for k, v := range env {
		if !envName.MatchString(k) {
			return invalid("env", fmt.Sprintf("%q", clip(k)), "a name must match "+envName.String())
		}
		if strings.ContainsRune(v, 0) {
			return invalid("env", k, "its value holds a zero byte")
		}
		total += len(k) + len(v) + 2
	}
	if total > maxEnvBytes {
		return invalid("env", fmt.Sprintf("%d bytes", total), fmt.Sprintf("at most %d in all", maxEnvBytes))
	}
	return nil
}

func checkMetadata(m map[string]string) error {
	if len(m) > maxMetadata {
		return invalid("metadata", fmt.Sprintf("of %d entries", len(m)), fmt.Sprintf("at most %d", maxMetadata))
	}
	for k, v := range m {
		switch {
		case k == "" || len(k) > maxMetadataKey || !utf8.ValidString(k):
			return invalid("metadata", fmt.Sprintf("%q", clip(k)), fmt.Sprintf("a key must have 1 to %d bytes", maxMetadataKey))
		case len(v) > maxMetadataValue:
			return invalid("metadata", fmt.Sprintf("%q of %d bytes", clip(k), len(v)), fmt.Sprintf("a value has at most %d bytes", maxMetadataValue))
		}
	}
	return nil
}
