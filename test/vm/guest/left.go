package guest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// left names what is there now and was not before. What is on its way out gets some time: a
// process that was told to end, a device that is removed when its last user closes it.
func left(before map[string]bool) []string {
	const patience = 10 * time.Second
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		if names := added(before); len(names) == 0 || time.Since(began) > patience {
			return names
		}
	}
}

func added(before map[string]bool) []string {
	var out []string
	for name := range remains() {
		if !before[name] {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// remains are the things that a test can forget in a kernel.
func remains() map[string]bool {
	out := map[string]bool{}
	for _, list := range [][]string{mappings(), loops(), mounts(), processes(), links()} {
		for _, name := range list {
			out[name] = true
		}
	}
	return out
}

func mappings() []string { return attributes("/sys/block/dm-*/dm/name", "mapping") }

func loops() []string { return attributes("/sys/block/loop*/loop/backing_file", "loop of") }

func links() []string {
	files, _ := filepath.Glob("/sys/class/net/*")
	var out []string
	for _, file := range files {
		out = append(out, "network interface "+filepath.Base(file))
	}
	return out
}

func attributes(pattern, what string) []string {
	files, _ := filepath.Glob(pattern)
	var out []string
	for _, file := range files {
		if text, err := os.ReadFile(file); err == nil {
			out = append(out, what+" "+strings.TrimSpace(string(text)))
		}
	}
	return out
}

func mounts() []string {
	text, _ := os.ReadFile("/proc/self/mounts")
	var out []string
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 2 {
			out = append(out, fmt.Sprintf("mount of %s on %s", f[2], f[1]))
		}
	}
	return out
}

// processes leaves out kernel threads, which have no command line, and what has ended.
func processes() []string {
	entries, _ := os.ReadDir("/proc")
	var out []string
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		line, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err == nil && len(line) > 0 {
			out = append(out, fmt.Sprintf("process %s: %s", e.Name(), strings.ReplaceAll(strings.TrimRight(string(line), "\x00"), "\x00", " ")))
		}
	}
	return out
}
