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
	Version   string
	Data      string
	Runtime   string
	Isolation string
	// Checks are those of package doctor and of whoever chose the runtime.
	Checks []doctor.Check
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
		Runtime: h.Runtime, Isolation: h.Isolation,
	}
	for _, f := range doctor.Run(ctx, h.Checks) {
		out.Checks = append(out.Checks, &hostv1.Check{Name: f.Name, Status: string(f.Status), Detail: f.Detail, Hint: f.Hint})
	}
	return out, nil
}
