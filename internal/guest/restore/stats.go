package restore

import (
	"bufio"
	"context"
	"os"
	"runtime"
	"strconv"
	"strings"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	pb "github.com/roosthq/roost/api/gen/roost/guest/v1"
	"github.com/roosthq/roost/internal/fault"
)

// Stats reports what the sandbox uses.
func (s *Service) Stats(_ context.Context, req *connect.Request[pb.StatsRequest]) (*connect.Response[pb.StatsResponse], error) {
	if err := s.authorize(req.Header()); err != nil {
		return nil, err
	}
	memory, err := meminfo()
	if err != nil {
		return nil, err
	}
	total, used, err := diskUse(s.Root)
	if err != nil {
		return nil, err
	}
	cache := memory["Buffers"] + memory["Cached"] + memory["SReclaimable"]
	return connect.NewResponse(&pb.StatsResponse{
		CpuCount:         uint32(runtime.NumCPU()),
		MemoryTotalBytes: memory["MemTotal"],
		MemoryUsedBytes:  memory["MemTotal"] - min(memory["MemTotal"], memory["MemFree"]+cache),
		MemoryCacheBytes: cache,
		DiskTotalBytes:   total,
		DiskUsedBytes:    used,
		Processes:        uint32(s.Tree.Processes()),
		Load1:            load1(),
		IdleMs:           s.Activity.Idle().Milliseconds(),
	}), nil
}

// meminfo reads /proc/meminfo, in bytes.
func meminfo() (map[string]uint64, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return nil, fault.Wrap(err, "read", "/proc/meminfo")
	}
	defer func() { _ = f.Close() }()
	out := map[string]uint64{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		name, rest, _ := strings.Cut(lines.Text(), ":")
		kib, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
		if err == nil {
			out[name] = kib << 10
		}
	}
	return out, nil
}

func load1() float64 {
	data, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(data), " ")
	load, _ := strconv.ParseFloat(first, 64)
	return load
}

// diskUse is the size of the file system at path and what is used of it.
func diskUse(path string) (total, used uint64, err error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return 0, 0, fault.Wrap(err, "stat file system", path)
	}
	block := uint64(fs.Bsize)
	return fs.Blocks * block, (fs.Blocks - fs.Bfree) * block, nil
}
