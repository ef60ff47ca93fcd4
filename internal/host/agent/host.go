package agent

import (
	"context"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	hostv1 "github.com/roosthq/roost/api/gen/roost/host/v1"
	"github.com/roosthq/roost/internal/host/doctor"
)

// HostInfo describes this machine and what Roost does on it.
type HostInfo struct {
	Version string
	Data    string
	// Runtimes are all that this version knows, best first; the first that is available runs
	// whoever asks for none.
	Runtimes []Runtime
	// Checks are those of package doctor and of whoever chose the runtime.
	Checks []doctor.Check
}

// Runtime is one way to run a sandbox, and why it is, or is not, available on this host.
type Runtime struct {
	Name      string
	Isolation string
	Available bool
	Reason    string
	Hint      string
}

// Describe looks at the host now.
func (h HostInfo) Describe(ctx context.Context) (*hostv1.GetHostResponse, error) {
	name, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	free, total, err := doctor.DiskSpace(h.Data)
	if err != nil {
		return nil, err
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return nil, err
	}
	out := &hostv1.GetHostResponse{
		Hostname: name, Version: h.Version,
		CpuCores:    uint32(runtime.NumCPU()), //nolint:gosec // a count of CPUs
		MemoryBytes: info.Totalram * uint64(info.Unit), DiskBytes: total, DiskFreeBytes: free,
	}
	for _, r := range h.Runtimes {
		if r.Available && out.Runtime == "" {
			out.Runtime, out.Isolation = r.Name, r.Isolation
		}
		out.Runtimes = append(out.Runtimes, &hostv1.Runtime{
			Name: r.Name, Isolation: r.Isolation, Available: r.Available, Reason: r.Reason, Hint: r.Hint,
		})
	}
	for _, f := range doctor.Run(ctx, h.Checks) {
		out.Checks = append(out.Checks, &hostv1.Check{Name: f.Name, Status: string(f.Status), Detail: f.Detail, Hint: f.Hint})
	}
	return out, nil
}
