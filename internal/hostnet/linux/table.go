package linux

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// table is an nftables table, as data. Its family is inet where none is given.
type table struct {
	Name   string
	Family nftables.TableFamily
	Sets   []keys
	Chains []chain
}

type chain struct {
	Name     string
	Type     nftables.ChainType
	Hook     *nftables.ChainHook
	Priority *nftables.ChainPriority
	Rules    []rule
}

// rule is kept in the kernel with its text as comment. By it, a rule that is there is told from one that is not: it
// can't be changed without losing the comment.
type rule struct {
	Text  string
	Exprs []expr.Any
}

// keys is a set of keys, each a concatenation of fields that are padded to four bytes; or, where it has a Value, a map of
// keys to values.
type keys struct {
	Name   string
	Key    []nftables.SetDatatype
	Keys   [][]byte
	Value  nftables.SetDatatype
	Values [][]byte
}

func (t table) family() nftables.TableFamily { return cmp.Or(t.Family, nftables.TableFamilyINet) }

// list is a table's content in short: what ruleList reads back.
func (t table) list() []string {
	var out []string
	for _, s := range t.Sets {
		out = append(out, s.list()...)
	}
	for _, c := range t.Chains {
		out = append(out, c.Name)
		for _, r := range c.Rules {
			out = append(out, c.Name+": "+r.Text)
		}
	}
	return out
}

func (s keys) list() []string {
	out := make([]string, len(s.Keys))
	for i, k := range s.Keys {
		out[i] = s.line(k)
		if len(s.Values) > 0 {
			out[i] += " " + hex.EncodeToString(s.Values[i])
		}
	}
	slices.Sort(out)
	return append([]string{s.Name}, out...)
}

// line is a key in a list; parse reads it back.
func (s keys) line(key []byte) string { return s.Name + ": " + hex.EncodeToString(key) }

func (s keys) parse(line string) (key []byte, ok bool) {
	text, ok := strings.CutPrefix(line, s.Name+": ")
	if ok {
		key, _ = hex.DecodeString(text)
	}
	return key, ok
}

// without is the table without the keys of its sets.
func (t table) without() table {
	t.Sets = slices.Clone(t.Sets)
	for i := range t.Sets {
		t.Sets[i].Keys, t.Sets[i].Values = nil, nil
	}
	return t
}

func (t table) String() string {
	if t.Family == nftables.TableFamilyBridge {
		return "bridge " + t.Name
	}
	return t.Name
}

// replace puts a table in place of one of its name, in one transaction: no packet sees it half made.
func (t table) replace(c *nftables.Conn) error {
	nt := &nftables.Table{Name: t.Name, Family: t.family()}
	c.AddTable(nt) // so that there is one to delete
	c.DelTable(nt)
	c.AddTable(nt)
	for i, s := range t.Sets {
		if err := s.add(c, nt, uint32(i+1)); err != nil {
			return err
		}
	}
	for _, ch := range t.Chains {
		nc := c.AddChain(&nftables.Chain{Name: ch.Name, Table: nt, Type: ch.Type, Hooknum: ch.Hook, Priority: ch.Priority})
		for _, r := range ch.Rules {
			comment := userdata.AppendString(nil, userdata.TypeComment, r.Text)
			c.AddRule(&nftables.Rule{Table: nt, Chain: nc, Exprs: r.Exprs, UserData: comment})
		}
	}
	return c.Flush()
}

// setChunk is how many keys one message holds: the length of its list has 16 bits.
const setChunk = 512

// add adds a set under an id of its transaction; the library's own are of a counter that is not safe for concurrent use.
func (s keys) add(c *nftables.Conn, t *nftables.Table, id uint32) error {
	ns := s.in(t)
	ns.ID = id
	if err := c.AddSet(ns, nil); err != nil {
		return err
	}
	return s.each(ns, c.SetAddElements)
}

func (s keys) in(t *nftables.Table) *nftables.Set {
	return &nftables.Set{
		Table: t, Name: s.Name, KeyType: nftables.MustConcatSetType(s.Key...), Concatenation: len(s.Key) > 1,
		IsMap: s.Value.Name != "", DataType: s.Value,
	}
}

// each calls f with the keys, as many at a time as a message holds.
func (s keys) each(ns *nftables.Set, f func(*nftables.Set, []nftables.SetElement) error) error {
	elements := make([]nftables.SetElement, len(s.Keys))
	for i, k := range s.Keys {
		elements[i].Key = k
		if len(s.Values) > 0 {
			elements[i].Val = s.Values[i]
		}
	}
	for some := range slices.Chunk(elements, setChunk) {
		if err := f(ns, some); err != nil {
			return err
		}
	}
	return nil
}

func (s setTable) do(_ context.Context, a *actor) error {
	return a.write(s.In, s.Table, true, s.Table.replace)
}

func (s setKeys) do(_ context.Context, a *actor) error {
	return a.write(s.In, s.Table, false, func(c *nftables.Conn) error {
		t := &nftables.Table{Name: s.Table.Name, Family: s.Table.family()}
		for _, k := range s.Del {
			if err := k.each(k.in(t), c.SetDeleteElements); err != nil {
				return err
			}
		}
		for _, k := range s.Add {
			if err := k.each(k.in(t), c.SetAddElements); err != nil {
				return err
			}
		}
		return c.Flush()
	})
}

// write commits a table, whole or a change of it, in one transaction: no packet sees it half made. What it makes of a
// table of the network need not be read back.
func (a *actor) write(in place, t table, whole bool, commit func(*nftables.Conn) error) error {
	site, err := a.site(in)
	if err != nil {
		return err
	}
	c, err := site.rules()
	if err != nil {
		return err
	}
	if in == inHost {
		a.h.uplink.Lock()
		defer a.h.uplink.Unlock()
		return commit(c)
	}
	before, err := site.generation()
	if err != nil {
		return err
	}
	if err := commit(c); err != nil {
		return err
	}
	after, err := site.generation()
	if err != nil {
		return err
	}
	if after == before+1 { // nobody else wrote meanwhile
		a.n.known.wrote(t, whole, before, after)
	}
	return nil
}

// tables remembers the rules of a network's two tables and of the host's, and the generation that they were read at.
type tables struct {
	seen  [3]uint32
	rules [3][]string
}

// Places in tables.
const (
	ofNetwork = iota
	ofGuard
	ofHost
)

// of reads a table's rules, if anything about the namespace's nftables changed since the last time.
func (t *tables) of(i int, s *site, family nftables.TableFamily, name string) ([]string, error) {
	gen, err := s.generation()
	if err != nil {
		return nil, err
	}
	if gen == t.seen[i] && gen != 0 {
		return t.rules[i], nil
	}
	rules, err := ruleList(s, family, name)
	if err != nil {
		return nil, err
	}
	t.seen[i], t.rules[i] = gen, rules
	return rules, nil
}

// wrote takes note of a transaction on one of the network's tables, between two generations. A change is of what was read
// last, so it tells what there is only where that still was so.
func (t *tables) wrote(to table, whole bool, before, after uint32) {
	at := ofNetwork
	if to.Family == nftables.TableFamilyBridge {
		at = ofGuard
	}
	whole = whole || t.seen[at] == before
	for _, i := range []int{ofNetwork, ofGuard} {
		if t.seen[i] == before && before != 0 {
			t.seen[i] = after
		}
	}
	if whole {
		t.seen[at], t.rules[at] = after, to.list()
	}
}

// ruleList reads a table back.
func ruleList(s *site, family nftables.TableFamily, name string) ([]string, error) {
	c, err := s.rules()
	if err != nil {
		return nil, err
	}
	chains, err := c.ListChainsOfTableFamily(family)
	if err != nil {
		return nil, err
	}
	chains = slices.DeleteFunc(chains, func(ch *nftables.Chain) bool { return ch.Table.Name != name })
	var out []string
	if len(chains) > 0 {
		if out, err = keyList(c, chains[0].Table); err != nil {
			return nil, vanished(err)
		}
	}
	for _, ch := range chains {
		out = append(out, ch.Name)
		rules, err := c.GetRules(ch.Table, ch)
		if err != nil {
			return nil, vanished(err)
		}
		for _, r := range rules {
			text, _ := userdata.GetString(r.UserData, userdata.TypeComment)
			out = append(out, ch.Name+": "+text)
		}
	}
	return out, nil
}

// keyList reads the sets of a table back.
func keyList(c *nftables.Conn, t *nftables.Table) (out []string, err error) {
	sets, err := c.GetSets(t)
	if err != nil {
		return nil, err
	}
	for _, s := range sets {
		elements, err := c.GetSetElements(s)
		if err != nil {
			return nil, err
		}
		back := keys{Name: s.Name}
		for _, e := range elements {
			back.Keys = append(back.Keys, e.Key)
			if s.IsMap {
				back.Values = append(back.Values, e.Val)
			}
		}
		out = append(out, back.list()...)
	}
	return out, nil
}

// vanished makes no error of what was removed while it was read.
func vanished(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// tableNames lists the inet tables of a namespace.
func tableNames(s *site) ([]string, error) {
	c, err := s.rules()
	if err != nil {
		return nil, err
	}
	all, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(all))
	for i, t := range all {
		names[i] = t.Name
	}
	return names, nil
}

// remove removes a table that is there.
func (t table) remove(c *nftables.Conn) error {
	c.DelTable(&nftables.Table{Name: t.Name, Family: t.family()})
	return c.Flush()
}
