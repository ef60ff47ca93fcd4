package guest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// left names what is there now and was not before.
func left(before map[string]bool) []string {
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
	for _, list := range [][]string{mappings(), loops(), mounts(), processes()} {
		for _, name := range list {
			out[name] = true
		}
	}
	return out
}

func mappings() []string { return attributes("/sys/block/dm-*/dm/name", "mapping") }

func loops() []string { return attributes("/sys/block/loop*/loop/backing_file", "loop of") }

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
