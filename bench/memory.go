package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sort"
	"strconv"
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
	fmt.Fprintln(os.Stderr, "  the 20th's private memory is made of:")
	printBytes(parts)
	return nil
}

// printBytes prints the largest first.
func printBytes(parts map[string]int64) {
	names := make([]string, 0, len(parts))
	for name := range parts {
		names = append(names, name)
	}
	sort.Slice(names, func(i, k int) bool { return parts[names[i]] > parts[names[k]] })
	for _, name := range names {
		if mb := float64(parts[name]) / (1 << 20); mb >= 0.1 {
			fmt.Fprintf(os.Stderr, "  %8.1f MiB %s\n", mb, name)
		}
	}
}

func sum(parts map[string]int64) (total int64) {
	for _, n := range parts {
		total += n
	}
	return total
}

// mapping is a part of a process's address space.
type mapping struct {
	perms, name  string // name is "" for anonymous memory
	private, pss int64  // bytes
}

// mappingsOf are those of a process; one that has ended has none.
func mappingsOf(pid int) ([]mapping, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []mapping
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		switch fields[0] {
		case "Private_Clean:", "Private_Dirty:", "Pss:":
			kb, err := strconv.ParseInt(fields[1], 10, 64)
			if err != nil {
				return nil, err
			}
			if m := &out[len(out)-1]; fields[0] == "Pss:" {
				m.pss += kb << 10
			} else {
				m.private += kb << 10
			}
		default:
			if !strings.HasSuffix(fields[0], ":") {
				out = append(out, mapping{perms: fields[1], name: strings.Join(fields[5:], " ")})
			}
		}
	}
	if err := lines.Err(); err != nil && !errors.Is(err, unix.ESRCH) {
		return nil, err
	}
	return out, nil
}

// privateBytes is Private_Clean + Private_Dirty of a QEMU process, by what is mapped.
func privateBytes(pid int) (map[string]int64, error) {
	all, err := mappingsOf(pid)
	if err != nil {
		return nil, err
	}
	out := map[string]int64{}
	for _, m := range all {
		out[m.ofQEMU()] += m.private
	}
	return out, nil
}

// ofQEMU names a mapping of QEMU by its kind.
func (m mapping) ofQEMU() string {
	switch {
	case m.name == "" && strings.Contains(m.perms, "x"):
		return "translated code"
	case m.name == "":
		return "anonymous memory of QEMU"
	case strings.Contains(m.name, "memfd"):
		return "the guest's RAM: pages that it changed"
	case strings.HasPrefix(m.name, "["):
		return "QEMU's " + strings.Trim(m.name, "[]")
	case strings.Contains(m.name, ".so"):
		return "shared libraries: relocated data"
	default:
		return m.name
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
