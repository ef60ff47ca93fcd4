package restore

import (
	"regexp"

	pb "github.com/roosthq/roost/api/gen/roost/guest/v1"
	"github.com/roosthq/roost/internal/fault"
)

var (
	machineID = regexp.MustCompile(`^[0-9a-f]{32}$`)
	hostname  = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9.-]{0,62}[a-zA-Z0-9])?$`)
	sandboxID = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,64}$`)
)

// check refuses a request that would leave the sandbox without an identity or open to all.
func (s *Service) check(r *pb.RestoreRequest) error {
	bad := ""
	switch {
	case !sandboxID.MatchString(r.GetSandboxId()):
		bad = "sandbox_id must be 1 to 64 letters, digits, '-' or '_'"
	case r.GetWallClockNs() <= 0:
		bad = "wall_clock_ns must be a time after 1970"
	case len(r.GetEntropy()) < 32 || len(r.GetEntropy()) > 4096:
		bad = "entropy must be 32 to 4096 bytes"
	case !hostname.MatchString(r.GetHostname()):
		bad = "hostname must be 1 to 64 letters, digits, '-' or '.'"
	case !machineID.MatchString(r.GetMachineId()):
		bad = "machine_id must be 32 lower-case hex digits"
	case r.GetAccessToken() == "" || r.GetControlToken() == "":
		bad = "access_token and control_token must not be empty"
	}
	if bad != "" {
		return fault.New(fault.Invalid, "restore", r.GetSandboxId(), bad)
	}
	if name := r.GetDefaultUser(); name != "" {
		if _, err := s.Users.Lookup(name); err != nil {
			return fault.New(fault.Invalid, "restore", r.GetSandboxId(), "default_user '"+name+"' does not exist in the sandbox")
		}
	}
	return nil
}
