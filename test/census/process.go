package census

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// proc is one process, as /proc shows it.
type proc struct {
	pid, parent, uid int
	start            string
	comm             string
	args             []string
	state            string
	env              []byte
}

func (p proc) String() string {
	text := strings.Join(p.args, " ")
	if p.state == "Z" {
		text = "(zombie: nobody waited for it)"
	}
	return fmt.Sprintf("pid %d, uid %d, %s: %.300s", p.pid, p.uid, p.comm, text)
}

// processes lists those in the scope.
func (s Scope) processes() ([]proc, error) {
	all, err := allProcesses()
	if err != nil {
		return nil, err
	}
	ancestors := map[int]bool{}
	for pid := os.Getpid(); pid != 0; pid = all[pid].parent {
		ancestors[pid] = true
	}
	var out []proc
	for pid, p := range all {
		if !ancestors[pid] && s.covers(p, all) {
			out = append(out, p)
		}
	}
	return out, nil
}

func (s Scope) covers(p proc, all map[int]proc) bool {
	if len(p.args) > 0 && hasPrefix(filepath.Base(p.args[0]), s.Commands) || hasPrefix(p.comm, s.Commands) {
		return true
	}
	if s.Run != "" && bytes.Contains(append([]byte{0}, p.env...), []byte("\x00"+RunVariable+"="+s.Run+"\x00")) {
		return true
	}
	return s.hasUID(p) || s.descends(p, all) || (s.Arguments && s.named(p.args...))
}

func (s Scope) hasUID(p proc) bool {
	return s.LastUID > 0 && p.uid >= s.FirstUID && p.uid <= s.LastUID
}

func (s Scope) descends(p proc, all map[int]proc) bool {
	for s.Root != 0 && p.pid != 0 {
		if p.parent == s.Root {
			return true
		}
		p = all[p.parent]
	}
	return false
}

func allProcesses() (map[int]proc, error) {
	list, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	out := map[int]proc{}
	for _, e := range list {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		p, err := readProcess(pid)
		if vanished(err) {
			continue // it ended while we looked
		}
		if err != nil {
			return nil, err
		}
		out[pid] = p
	}
	return out, nil
}

func vanished(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH)
}

func readProcess(pid int) (proc, error) {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return proc{}, err
	}
	// The name is in parentheses and may itself hold spaces and parentheses.
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	fields := strings.Fields(string(stat[end+1:]))
	if open < 0 || end < open || len(fields) < 20 {
		return proc{}, fmt.Errorf("read /proc/%d/stat: %q is not understood", pid, stat)
	}
	p := proc{pid: pid, comm: string(stat[open+1 : end]), state: fields[0], start: fields[19]}
	if p.parent, err = strconv.Atoi(fields[1]); err != nil {
		return proc{}, err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return proc{}, err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		p.uid = int(st.Uid)
	}
	cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil {
		return proc{}, err
	}
	if len(cmdline) > 0 {
		p.args = strings.Split(strings.TrimRight(string(cmdline), "\x00"), "\x00")
	}
	// Not readable for every process (another user's, one that is ending): then it has no mark.
	p.env, _ = os.ReadFile(filepath.Join(dir, "environ"))
	return p, nil
}

func (c Census) addProcesses(s Scope, procs []proc) {
	for _, p := range procs {
		c.add(Process, fmt.Sprintf("%d/%s", p.pid, p.start), p.String())
		if s.hasUID(p) {
			uid := strconv.Itoa(p.uid)
			c.add(UID, uid, fmt.Sprintf("%s, used by %s", uid, p))
		}
	}
}
