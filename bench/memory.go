package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"sort"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/bench/harness"
)

const pageSize = 4096

// workload is what every sandbox of memoryOf20 runs.
const workload = `import json, hashlib
data = [{"n": i, "h": hashlib.sha256(str(i).encode()).hexdigest()} for i in range(20000)]
print(len(json.dumps(data)))`

// memoryOf20 starts 20 sandboxes, runs the same Python in each, and compares what only the
// last holds with what only the first holds, while all 20 run.
func (s *server) memoryOf20(ctx context.Context, _ int) ([]harness.Result, error) {
	const n = 20
	var ids []string
	defer func() {
		for _, id := range ids {
			_ = s.delete(ctx, id)
		}
	}()
	for i := range n {
		id, err := s.create(ctx, false)
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
		if _, err := s.exec(ctx, id, "python3", "-c", workload); err != nil {
			return nil, err
		}
		progress(i+1, n)
	}
	private := func(id string) harness.Sample {
		return func(context.Context) (float64, error) {
			pid, err := s.pid(id)
			if err != nil {
				return 0, err
			}
			total, err := privateBytes(pid)
			return float64(sum(total)), err
		}
	}
	r, err := harness.Run(ctx, harness.Experiment{
		Name: "private memory of the 20th sandbox ÷ the first", Unit: harness.Bytes, Limit: 1.05,
		NoControl: true, Warmup: -1, Pairs: 1, A: private(ids[n-1]), B: private(ids[0]),
	})
	if err != nil {
		return nil, err
	}
	return []harness.Result{r}, s.explainMemory(ids[n-1])
}

// explainMemory prints what the private memory of a sandbox is made of.
func (s *server) explainMemory(id string) error {
	pid, err := s.pid(id)
	if err != nil {
		return err
	}
	parts, err := privateBytes(pid)
	if err != nil {
		return err
	}
	names := make([]string, 0, len(parts))
	for name := range parts {
		names = append(names, name)
	}
	sort.Slice(names, func(i, k int) bool { return parts[names[i]] > parts[names[k]] })
	fmt.Fprintln(os.Stderr, "  the 20th's private memory is made of:")
	for _, name := range names {
		if mb := float64(parts[name]) / (1 << 20); mb >= 0.1 {
			fmt.Fprintf(os.Stderr, "  %8.1f MiB %s\n", mb, name)
		}
	}
	return nil
}

func sum(parts map[string]int64) (total int64) {
	for _, n := range parts {
		total += n
	}
	return total
}

// privateBytes is Private_Clean + Private_Dirty of a process, by what is mapped.
func privateBytes(pid int) (map[string]int64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	out := map[string]int64{}
	name := ""
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		line := lines.Text()
		var kb int64
		switch {
		case strings.HasPrefix(line, "Private_Clean:"), strings.HasPrefix(line, "Private_Dirty:"):
			if _, err := fmt.Sscanf(strings.SplitN(line, ":", 2)[1], "%d", &kb); err != nil {
				return nil, err
			}
			out[name] += kb << 10
		case !strings.Contains(strings.SplitN(line, " ", 2)[0], ":"):
			name = mapped(line)
		}
	}
	return out, lines.Err()
}

// mapped names a mapping by its kind.
func mapped(line string) string {
	fields := strings.Fields(line)
	switch {
	case len(fields) < 6 && strings.Contains(fields[1], "x"):
		return "translated code"
	case len(fields) < 6:
		return "anonymous memory of QEMU"
	case strings.Contains(line, "memfd"):
		return "the guest's RAM: pages that it changed"
	case strings.HasPrefix(fields[5], "["):
		return "QEMU's " + strings.Trim(fields[5], "[]")
	case strings.Contains(fields[5], ".so"):
		return "shared libraries: relocated data"
	default:
		return fields[5]
	}
}

// countPages counts the private, non-zero pages of a VM's RAM from outside, the VM stopped
// for as long as it takes.
func (s *server) countPages(id string) (float64, error) {
	pid, err := s.pid(id)
	if err != nil {
		return 0, err
	}
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		return 0, err
	}
	defer func() { _ = unix.Kill(pid, unix.SIGCONT) }()
	start, end, err := ramOf(pid)
	if err != nil {
		return 0, err
	}
	pagemap, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	if err != nil {
		return 0, err
	}
	defer pagemap.Close()
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return 0, err
	}
	defer mem.Close()
	entries := make([]byte, (end-start)/pageSize*8)
	if _, err := pagemap.ReadAt(entries, start/pageSize*8); err != nil {
		return 0, err
	}
	page, zero := make([]byte, pageSize), string(make([]byte, pageSize))
	count := 0.0
	for i := int64(0); i < int64(len(entries)); i += 8 {
		const present, swapped, file = 1 << 63, 1 << 62, 1 << 61
		if e := binary.LittleEndian.Uint64(entries[i:]); e&(present|swapped) == 0 || e&file != 0 {
			continue
		}
		if _, err := mem.ReadAt(page, start+i/8*pageSize); err != nil {
			return 0, err
		}
		if string(page) != zero {
			count++
		}
	}
	return count, nil
}

// ramOf is where a VM's RAM is mapped: the largest mapping of a memfd.
func ramOf(pid int) (start, end int64, err error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(raw)) {
		var a, b int64
		if !strings.Contains(line, "/memfd:") {
			continue
		}
		if _, err := fmt.Sscanf(line, "%x-%x", &a, &b); err == nil && b-a > end-start {
			start, end = a, b
		}
	}
	if end == 0 {
		return 0, 0, fmt.Errorf("process %d maps no memfd", pid)
	}
	return start, end, nil
}
