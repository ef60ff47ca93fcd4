package image

import (
	"debug/elf"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/roosthq/roost/internal/fault"
)

// moduleName is the kernel's name of a module: its files mix dashes and underscores.
func moduleName(file string) string {
	return strings.ReplaceAll(strings.TrimSuffix(path.Base(file), ".ko"), "-", "_")
}

// moduleOrder gives the wanted modules and all they depend on, each after its dependencies.
// The package holds no modules.dep (depmod makes it when a kernel is installed), so the
// modules themselves are asked. What is built into the kernel is left out.
func moduleOrder(dir string, wanted []string) ([]string, error) {
	builtin, err := builtinModules(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	o := &ordering{dir: dir, seen: builtin}
	for _, name := range wanted {
		if err := o.visit(moduleName(name)); err != nil {
			return nil, err
		}
	}
	return o.order, nil
}

type ordering struct {
	dir   string
	seen  map[string]bool
	order []string
}

func (o *ordering) visit(name string) error {
	if o.seen[name] {
		return nil
	}
	o.seen[name] = true
	deps, err := moduleDepends(filepath.Join(o.dir, name+".ko"))
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.NotFound, "find kernel module", name, "neither a module nor built in")
	}
	if err != nil {
		return fault.Wrap(err, "read kernel module", name)
	}
	for _, dep := range deps {
		if err := o.visit(moduleName(dep)); err != nil {
			return err
		}
	}
	o.order = append(o.order, name)
	return nil
}

func builtinModules(file string) (map[string]bool, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fail(err, "read", file)
	}
	names := map[string]bool{}
	for line := range strings.FieldsSeq(string(data)) {
		names[moduleName(line)] = true
	}
	return names, nil
}

// moduleDepends reads "depends=a,b" from a module's .modinfo section.
func moduleDepends(file string) ([]string, error) {
	f, err := elf.Open(file)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // read only
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fault.New(fault.Internal, "read", file, "no .modinfo section")
	}
	data, err := section.Data()
	if err != nil {
		return nil, err
	}
	for entry := range strings.SplitSeq(string(data), "\x00") {
		if deps, ok := strings.CutPrefix(entry, "depends="); ok && deps != "" {
			return strings.Split(deps, ","), nil
		}
	}
	return nil, nil
}
