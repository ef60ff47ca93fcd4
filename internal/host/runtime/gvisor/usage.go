package gvisor

import (
	"bufio"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/roosthq/roost/internal/fault"
)

// uidMemory sums the proportional share of memory of a uid's processes, where no cgroup counts
// it. A process that ends meanwhile has none.
func uidMemory(uid int) (int64, error) {
	var total int64
	err := eachProcess(func(pid int) {
		if owner(pid) == uid {
			total += pss(pid)
		}
	})
	return total, err
}

func pss(pid int) int64 {
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/smaps_rollup")
	if err != nil {
		return 0
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), "Pss:"); ok {
			kb, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			return kb << 10
		}
	}
	return 0
}

// allocated sums what the files of a directory really take.
func allocated(dir string) (int64, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fault.Wrap(err, "measure", dir)
	}
	var total int64
	for _, e := range entries {
		if info, err := os.Lstat(filepath.Join(dir, e.Name())); err == nil {
			total += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
	}
	return total, nil
}
