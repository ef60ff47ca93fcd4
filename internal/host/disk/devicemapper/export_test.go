package devicemapper

// Calls are the driver's ioctls so far.
func (d *Driver) Calls() (n uint64) {
	for _, calls := range d.dm.Calls() {
		n += calls
	}
	return n
}
