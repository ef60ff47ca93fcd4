package process

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/guest/account"
	"github.com/roosthq/roost/internal/guest/cgroup"
)

// DefaultPath is the PATH of a process whose environment names none.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// target is a Spec made concrete: which file, where, with which environment.
type target struct {
	path string
	cwd  string
	envs []string
}

func resolve(spec Spec) (target, error) {
	if err := checkStrings(spec); err != nil {
		return target{}, err
	}
	cwd, err := workingDirectory(spec)
	if err != nil {
		return target{}, err
	}
	envs := environment(spec)
	path, err := lookPath(spec.Cmd, cwd, envs["PATH"])
	if err != nil {
		return target{}, err
	}
	return target{path: path, cwd: cwd, envs: join(envs)}, nil
}

// checkStrings refuses what an argv or environment cannot carry.
func checkStrings(spec Spec) error {
	if spec.Cmd == "" {
		return fault.New(fault.Invalid, "start process", "", "the command is empty")
	}
	all := append([]string{spec.Cmd}, spec.Args...)
	for name, value := range spec.Envs {
		if name == "" || strings.Contains(name, "=") {
			return fault.New(fault.Invalid, "start process", "'"+spec.Cmd+"'", "'"+name+"' cannot name an environment variable")
		}
		all = append(all, name, value)
	}
	for _, s := range all {
		if strings.IndexByte(s, 0) >= 0 {
			return fault.New(fault.Invalid, "start process", "", "the command, an argument or the environment holds a NUL byte")
		}
	}
	return nil
}

func workingDirectory(spec Spec) (string, error) {
	if spec.Cwd == "" {
		return homeOrRoot(spec.User.Home), nil
	}
	cwd, err := spec.User.Resolve(spec.Cwd)
	if err != nil {
		return "", err
	}
	info, err := os.Stat(cwd)
	if os.IsNotExist(err) {
		return "", fault.New(fault.Invalid, "", "", "cwd '"+spec.Cwd+"' does not exist")
	}
	if err != nil {
		return "", account.FromOS(err, "open cwd", "'"+spec.Cwd+"'")
	}
	if !info.IsDir() {
		return "", fault.New(fault.Invalid, "", "", "cwd '"+spec.Cwd+"' is not a directory")
	}
	return cwd, nil
}

// homeOrRoot: a system account such as nobody has no home.
func homeOrRoot(home string) string {
	if info, err := os.Stat(home); err == nil && info.IsDir() {
		return home
	}
	return "/"
}

// environment: what a login gives, then the request's (which holds the sandbox's own).
func environment(spec Spec) map[string]string {
	envs := map[string]string{
		"PATH": DefaultPath, "HOME": spec.User.Home, "USER": spec.User.Name,
		"LOGNAME": spec.User.Name, "SHELL": spec.User.Shell,
	}
	if spec.Terminal != nil {
		envs["TERM"] = "xterm-256color"
	}
	for name, value := range spec.Envs {
		envs[name] = value
	}
	return envs
}

func join(envs map[string]string) []string {
	out := make([]string, 0, len(envs))
	for name, value := range envs {
		out = append(out, name+"="+value)
	}
	return out
}

// lookPath finds the file of a command as a shell in cwd would.
func lookPath(cmd, cwd, path string) (string, error) {
	if strings.Contains(cmd, "/") {
		file := cmd
		if !filepath.IsAbs(file) {
			file = filepath.Join(cwd, file)
		}
		return file, checkExecutable(file, cmd)
	}
	for _, dir := range filepath.SplitList(path) {
		if !filepath.IsAbs(dir) {
			dir = filepath.Join(cwd, dir)
		}
		if file := filepath.Join(dir, cmd); checkExecutable(file, cmd) == nil {
			return file, nil
		}
	}
	return "", fault.New(fault.NotFound, "start process", "'"+cmd+"'", "command not found in PATH").
		WithHint("Install it in the sandbox, or give its full path.")
}

func checkExecutable(file, cmd string) error {
	info, err := os.Stat(file)
	switch {
	case err != nil:
		return account.FromOS(err, "start process", "'"+cmd+"'")
	case info.IsDir():
		return fault.New(fault.Invalid, "start process", "'"+cmd+"'", "it is a directory")
	case info.Mode()&0o111 == 0:
		return fault.New(fault.PermissionDenied, "start process", "'"+cmd+"'", "it is not executable")
	}
	return nil
}

func (t target) attr(spec Spec, s *streams, leaf *cgroup.Leaf) *syscall.ProcAttr {
	return &syscall.ProcAttr{
		Dir:   t.cwd,
		Env:   t.envs,
		Files: []uintptr{uintptr(s.child[0]), uintptr(s.child[1]), uintptr(s.child[2])},
		Sys: &syscall.SysProcAttr{
			Setsid:      true,
			Setctty:     spec.Terminal != nil,
			Ctty:        0,
			Credential:  spec.User.Credential(),
			UseCgroupFD: true,
			CgroupFD:    leaf.FD(),
		},
	}
}
