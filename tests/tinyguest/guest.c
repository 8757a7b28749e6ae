/* tinyguest: commands on the 16550 at 0x3f8, one per line; see README. No interrupts are needed for the basic ones. */
#include "tiny.h"

static inline void outb(u16 p, u8 v) { __asm__ volatile("outb %0,%1" ::"a"(v), "Nd"(p)); }
static inline u8 inb(u16 p) { u8 v; __asm__ volatile("inb %1,%0" : "=a"(v) : "Nd"(p)); return v; }
static inline u64 rdtsc(void) { u32 a, d; __asm__ volatile("rdtsc" : "=a"(a), "=d"(d)); return ((u64)d << 32) | a; }
static inline u64 rdmsr(u32 m) { u32 a, d; __asm__ volatile("rdmsr" : "=a"(a), "=d"(d) : "c"(m)); return ((u64)d << 32) | a; }
static inline void cpuid(u32 l, u32 s, u32 *r) { __asm__ volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(l), "c"(s)); }

#define COM 0x3f8
/* Where a command's answer goes: the port that the command came from (vcmd), else the UART. */
static u8 to_vserial; static u8 answer[512]; static u32 answer_len;
static void flush_answer(void) { if (answer_len) vserial_send(answer, answer_len); answer_len = 0; }
static void putc(char c) {
  if (to_vserial) { answer[answer_len++] = c; if (answer_len == sizeof answer) flush_answer(); return; }
  while (!(inb(COM + 5) & 0x20)) ; outb(COM, c);
}
static void puts(const char *s) { while (*s) putc(*s++); }
static void putx(u64 v) { char b[17]; int i = 16; b[16] = 0; do { b[--i] = "0123456789abcdef"[v & 15]; v >>= 4; } while (v); puts(b + i); }
static void putd(u64 v) { char b[21]; int i = 20; b[20] = 0; do { b[--i] = '0' + v % 10; v /= 10; } while (v); puts(b + i); }
static void nl(void) { putc('\n'); }

/* ---- state that a snapshot must carry ---- */
volatile u64 counter;           /* grows in the idle loop */
volatile u64 epoch;             /* set by command: identifies a history */
volatile u64 ticks;             /* timer interrupts seen (LAPIC or PIT) */
volatile u64 virtio_irqs;       /* virtio-mmio interrupts through the IOAPIC */
volatile u64 uart_irqs;         /* receive interrupts seen (idle 1) */

/* ---- pattern over guest pages: 8 words a page ---- */
static u64 mix(u64 seed, u64 page, u64 w) { u64 x = seed * 0x9E3779B97F4A7C15ul ^ page << 12 ^ w; x ^= x >> 29; x *= 0xBF58476D1CE4E5B9ul; return x ^ x >> 32; }
static u64 do_fill(u64 first, u64 n, u64 seed, u64 step) {
  for (u64 p = first; p < first + n; p++) { volatile u64 *q = (u64 *)(p << 12); for (u64 w = 0; w < 512; w += step) q[w] = mix(seed, p, w); }
  return n;
}
static u64 do_check(u64 first, u64 n, u64 seed, u64 step) {   /* number of bad words */
  u64 bad = 0;
  for (u64 p = first; p < first + n; p++) { volatile u64 *q = (u64 *)(p << 12); for (u64 w = 0; w < 512; w += step) bad += q[w] != mix(seed, p, w); }
  return bad;
}
static u64 do_spin(u64 n, u64 a, u64 b, u64 c) { (void)a; (void)b; (void)c; __asm__ volatile("1: dec %0; jnz 1b" : "+r"(n)); return 0; }

/* ---- traps ---- */
extern u8 stubs[]; extern u64 gdt[]; extern u8 tss[]; extern u8 stack_top[];
extern u64 user_call(u64 (*f)(u64, u64, u64, u64), u64, u64, u64, u64);
extern void user_return(u64); extern u8 user_exit[];
static struct { u16 o0, sel; u8 ist, type; u16 o1; u32 o2, z; } idt[256];
struct regs { u64 r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rdi, rsi, rdx, rcx, rax, vec, err, rip, cs, rfl, rsp, ss; };
static u32 lapic = 0xfee00000;
static volatile u8 saw_bp;
void trap(struct regs *r) {
  if (r->vec == 6 && r->rip == (u64)user_exit) user_return(r->rax);
  if (r->vec == 3) { saw_bp = 1; return; }
  if (r->vec >= 32) {
    if (r->vec == 0x54) uart_irqs++; else if (r->vec == 0x41) virtio_irqs++; else ticks++;
    if (r->vec >= 0x50) outb(0x20, 0x20); else *(volatile u32 *)(u64)(lapic + 0xb0) = 0;   /* PIC: 0x50..; LAPIC: 0x40 */
    return;
  }
  u64 cr2; __asm__ volatile("mov %%cr2,%0" : "=r"(cr2));
  puts("EXC "); putd(r->vec); puts(" err "); putx(r->err); puts(" rip "); putx(r->rip); puts(" cs "); putx(r->cs); puts(" cr2 "); putx(cr2); nl();
  for (;;) __asm__ volatile("cli; hlt");
}
static void traps_init(void) {
  for (int i = 0; i < 256; i++) {
    u64 a = (u64)stubs + i * 16; idt[i].o0 = a; idt[i].sel = 8; idt[i].ist = 0; idt[i].type = i == 3 ? 0xee : 0x8e; idt[i].o1 = a >> 16; idt[i].o2 = a >> 32; idt[i].z = 0;
  }
  struct { u16 l; u64 b; } __attribute__((packed)) p = { sizeof idt - 1, (u64)idt };
  __asm__ volatile("lidt %0" ::"m"(p));
  u64 t = (u64)tss;
  gdt[5] = 103 | (t & 0xffffff) << 16 | 0x89ul << 40 | (t >> 24 & 0xff) << 56; gdt[6] = t >> 32;
  *(u16 *)(tss + 102) = 104;
  *(u64 *)(tss + 4) = (u64)stack_top;
  __asm__ volatile("ltr %w0" ::"r"(0x28));
}

/* ---- interrupts: LAPIC timer, PIT ---- */
static u32 lr(u32 o) { return *(volatile u32 *)(u64)(lapic + o); }
static void lw(u32 o, u32 v) { *(volatile u32 *)(u64)(lapic + o) = v; }
void ioapic_route(u32 gsi, u8 vector) {   /* edge, fixed, to LAPIC 0 */
  volatile u32 *io = (u32 *)(gsi < 24 ? 0xfec00000ul : 0xfec10000ul); gsi %= 24; lw(0xf0, 0x1ff);   /* second one: QEMU microvm with ACPI */
  io[0] = 0x11 + 2 * gsi; io[4] = 0; io[0] = 0x10 + 2 * gsi; io[4] = vector;
}
static void cmd_lapic(u64 count, u64 loops) {
  u64 base = rdmsr(0x1b); puts("apicbase "); putx(base); if (base & 0x400) { puts(" x2apic\n"); return; }
  puts(" ver "); putx(lr(0x30)); puts(" id "); putx(lr(0x20));
  lw(0xf0, 0x1ff); lw(0x3e0, 3); lw(0x320, 0x20040); lw(0x380, count);
  u64 t0 = ticks, c0 = rdtsc(); __asm__ volatile("sti");
  for (u64 i = 0; i < loops && ticks - t0 < 10; i++) __asm__ volatile("pause");
  __asm__ volatile("cli"); lw(0x320, 0x10000); lw(0x380, 0);
  puts(" ticks "); putd(ticks - t0); puts(" tsc "); putd(rdtsc() - c0); nl();
}
static void cmd_hlt(u64 count, u64 n) {   /* n one-shot timers, each waited for with sti;hlt */
  lw(0xf0, 0x1ff); lw(0x3e0, 3); lw(0x320, 0x00040);
  u64 t0 = ticks, c0 = rdtsc();
  for (u64 i = 0; i < n; i++) { lw(0x380, count); __asm__ volatile("sti; hlt; cli"); }
  puts("hlt ticks "); putd(ticks - t0); puts(" tsc "); putd(rdtsc() - c0); nl();
}
static void pic_init(u8 mask) {   /* 8259 pair at vectors 0x50/0x58, ExtINT through LAPIC LINT0 */
  outb(0x20, 0x11); outb(0xa0, 0x11); outb(0x21, 0x50); outb(0xa1, 0x58); outb(0x21, 4); outb(0xa1, 2); outb(0x21, 1); outb(0xa1, 1); outb(0x21, mask); outb(0xa1, 0xff);
  lw(0xf0, 0x1ff); lw(0x350, 0x700);
}
static void cmd_pit(u64 div, u64 loops) {   /* PIT ch0 -> IRQ0 */
  pic_init(0xfe); outb(0x43, 0x34); outb(0x40, div); outb(0x40, div >> 8);
  u64 t0 = ticks, c0 = rdtsc(); __asm__ volatile("sti");
  for (u64 i = 0; i < loops && ticks - t0 < 10; i++) __asm__ volatile("pause");
  __asm__ volatile("cli"); outb(0x21, 0xff);
  puts("pit ticks "); putd(ticks - t0); puts(" tsc "); putd(rdtsc() - c0); nl();
}
/* ---- virtio-mmio: magic, version, device id, vendor, first config words ---- */
static void cmd_virtio(u64 base, u64 n, u64 stride) {
  for (u64 i = 0; i < n; i++, base += stride) {
    volatile u32 *m = (u32 *)base; u32 magic = m[0];
    if (magic != 0x74726976) { puts("mmio "); putx(base); puts(" magic "); putx(magic); nl(); continue; }
    u32 id = m[2]; if (!id) continue;
    puts("mmio "); putx(base); puts(" ver "); putx(m[1]); puts(" id "); putd(id); puts(" vendor "); putx(m[3]);
    m[0x70 / 4] = 0; m[0x70 / 4] = 1; m[0x70 / 4] = 3; m[0x14 / 4] = 0; u32 f0 = m[0x10 / 4]; m[0x14 / 4] = 1; u32 f1 = m[0x10 / 4];
    puts(" feat "); putx(f1); putc(':'); putx(f0); puts(" st "); putx(m[0x70 / 4]); puts(" cfg "); putx(m[0x100 / 4]); putc(' '); putx(m[0x104 / 4]); nl();
    m[0x70 / 4] = 0;
  }
}
static void cmd_cpu(void) {
  u32 r[4]; char v[13]; v[12] = 0;
  cpuid(0, 0, r); *(u32 *)v = r[1]; *(u32 *)(v + 4) = r[3]; *(u32 *)(v + 8) = r[2]; puts("cpu "); puts(v);
  cpuid(1, 0, r); puts(" sig "); putx(r[0]); puts(" c "); putx(r[2]); puts(" d "); putx(r[3]);
  cpuid(0x40000000, 0, r); *(u32 *)v = r[1]; *(u32 *)(v + 4) = r[2]; *(u32 *)(v + 8) = r[3]; puts(" hv "); puts(v);
  u16 cs; __asm__ volatile("mov %%cs,%0" : "=r"(cs)); puts(" cs "); putx(cs); puts(" efer "); putx(rdmsr(0xc0000080)); nl();
}

/* ---- idle: 0 = poll the LSR (default), 1 = sti;hlt until the UART's IRQ4 ---- */
static volatile u8 idle;
static void cmd_idle(u64 on) {
  if (on) { pic_init(0xef); outb(COM + 4, 0x0b); outb(COM + 1, 1); } else outb(COM + 1, 0);
  idle = on; puts("idle "); putd(on); nl();
}

/* ---- a periodic LAPIC timer that stays armed (ticks are taken in idle 1): its state must survive a snapshot ---- */
static void cmd_periodic(u64 count) {
  if (count) { lw(0xf0, 0x1ff); lw(0x3e0, 3); lw(0x320, 0x20040); lw(0x380, count); } else { lw(0x320, 0x10000); lw(0x380, 0); }
  puts("periodic "); putd(count); nl();
}

/* ---- command loop ---- */
extern u64 pvh_info, zero_page;
static char line[128]; static u32 len;
static const char *arg(const char *p, u64 *v, u64 dflt) {
  while (*p == ' ') p++;
  if (!*p) { *v = dflt; return p; }
  u64 x = 0;
  if (p[0] == '0' && p[1] == 'x') { for (p += 2; *p && *p != ' '; p++) x = x * 16 + (*p <= '9' ? *p - '0' : (*p | 32) - 'a' + 10); }
  else for (; *p && *p != ' '; p++) x = x * 10 + (*p - '0');
  *v = x; return p;
}
static int is(const char *c, const char **rest) { const char *p = line; while (*c && *p == *c) p++, c++; if (*c || (*p && *p != ' ')) return 0; *rest = p; return 1; }
static void command(void) {
  const char *p; u64 a, b, c, d;
  if (is("ping", &p)) { puts("pong "); putd(counter); puts(" epoch "); putd(epoch); nl(); }
  else if (is("epoch", &p)) { arg(p, &a, 0); epoch = a; puts("epoch "); putd(epoch); nl(); }
  else if (is("fill", &p)) { p = arg(p, &a, 0); p = arg(p, &b, 1); p = arg(p, &c, 1); arg(p, &d, 64); puts("filled "); putd(do_fill(a, b, c, d)); nl(); }
  else if (is("check", &p)) { p = arg(p, &a, 0); p = arg(p, &b, 1); p = arg(p, &c, 1); arg(p, &d, 64); puts("bad "); putd(do_check(a, b, c, d)); nl(); }
  else if (is("ufill", &p)) { p = arg(p, &a, 0); p = arg(p, &b, 1); p = arg(p, &c, 1); arg(p, &d, 64); puts("filled "); putd(user_call(do_fill, a, b, c, d)); nl(); }
  else if (is("ucheck", &p)) { p = arg(p, &a, 0); p = arg(p, &b, 1); p = arg(p, &c, 1); arg(p, &d, 64); puts("bad "); putd(user_call(do_check, a, b, c, d)); nl(); }
  else if (is("spin", &p)) { arg(p, &a, 1000); u64 t = rdtsc(); do_spin(a, 0, 0, 0); puts("spun "); putd(rdtsc() - t); nl(); }
  else if (is("uspin", &p)) { arg(p, &a, 1000); u64 t = rdtsc(); user_call(do_spin, a, 0, 0, 0); puts("spun "); putd(rdtsc() - t); nl(); }
  else if (is("peek", &p)) { arg(p, &a, 0); puts("value "); putx(*(volatile u64 *)a); nl(); }
  else if (is("poke", &p)) { p = arg(p, &a, 0); arg(p, &b, 0); *(volatile u64 *)a = b; puts("value "); putx(*(volatile u64 *)a); nl(); }
  else if (is("rdmsr", &p)) { arg(p, &a, 0); puts("value "); putx(rdmsr(a)); nl(); }
  else if (is("boot", &p)) { puts(pvh_info ? "boot pvh" : "boot linux64"); nl(); }
  else if (is("cpu", &p)) cmd_cpu();
  else if (is("int3", &p)) { saw_bp = 0; __asm__ volatile("int3"); puts(saw_bp ? "bp ok" : "bp lost"); nl(); }
  else if (is("cx16", &p)) { static u64 m[2] __attribute__((aligned(16))); u64 lo = 0, hi = 0; u8 ok; __asm__ volatile("lock cmpxchg16b %1; sete %0" : "=q"(ok), "+m"(m), "+a"(lo), "+d"(hi) : "b"(1ul), "c"(2ul)); puts("cx16 "); putd(ok); nl(); m[0] = m[1] = 0; }
  else if (is("lapic", &p)) { p = arg(p, &a, 100000); arg(p, &b, 2000000); cmd_lapic(a, b); }
  else if (is("hlt", &p)) { p = arg(p, &a, 100000); arg(p, &b, 5); cmd_hlt(a, b); }
  else if (is("pit", &p)) { p = arg(p, &a, 11932); arg(p, &b, 2000000); cmd_pit(a, b); }
  else if (is("virtio", &p)) { p = arg(p, &a, 0xfeb00000); p = arg(p, &b, 24); arg(p, &c, 512); cmd_virtio(a, b, c); }
  else if (is("periodic", &p)) { arg(p, &a, 1000000); cmd_periodic(a); }
  else if (is("ticks", &p)) { puts("ticks "); putd(ticks); nl(); }
  else if (is("vsock", &p)) { p = arg(p, &a, 0xc0001000); arg(p, &b, 5); int r = vsock_init(a, b); if (r < 0) { puts("vsock error "); putd(-r); } else { puts("vsock cid "); putd(r); } nl(); }
  else if (is("vserial", &p)) { p = arg(p, &a, 0xfeb02e00); arg(p, &b, 47); int r = vserial_init(a, b); puts(r < 0 ? "vserial error " : "vserial ready "); putd(r < 0 ? -r : r); nl(); }
  else if (is("vcmd", &p)) { arg(p, &a, 1); vserial_commands = a; puts("vcmd "); putd(a); nl(); }
  else if (is("vstat", &p)) { puts("vsock irqs "); putd(virtio_irqs); puts(" resets "); putd(vsock_resets); puts(" echoed "); putd(vsock_echoed); puts(" serial "); putd(vserial_echoed); nl(); }
  else if (is("idle", &p)) { arg(p, &a, 1); cmd_idle(a); }
  else if (is("reset", &p)) { outb(0x64, 0xfe); for (;;) ; }
  else if (is("triple", &p)) { struct { u16 l; u64 b; } __attribute__((packed)) none = { 0, 0 }; __asm__ volatile("lidt %0; ud2" ::"m"(none)); }
  else if (is("crash", &p)) __asm__ volatile("ud2");
  else { puts("echo "); puts(line); nl(); }
}
/* boot arguments: run=CMD;CMD;... with '+' for a space, run before the ready line (for guests without serial input) */
static void run_cmdline(void) {
  const char *p = 0;
  if (pvh_info && *(u32 *)pvh_info == 0x336ec578) p = (const char *)*(u64 *)(pvh_info + 24);
  else if (zero_page) p = (const char *)(u64)*(u32 *)(zero_page + 0x228);
  if (!p) return;
  for (; *p; p++) if (p[0] == 'r' && p[1] == 'u' && p[2] == 'n' && p[3] == '=') break;
  if (!*p) return;
  for (p += 4; *p && *p != ' '; p++) {
    if (*p != ';') { if (len < sizeof line - 1) line[len++] = *p == '+' ? ' ' : *p; }
    if (*p == ';' || !p[1] || p[1] == ' ') { line[len] = 0; if (len) command(); len = 0; }
  }
}
/* vcmd: bytes from the virtio-serial port are commands, too; a line that is cut by a reconnect ends at the next newline */
static char vline[sizeof line]; static u32 vlen;
void vserial_byte(char ch) {
  if (ch != '\n' && ch != '\r') { if (vlen < sizeof vline - 1) vline[vlen++] = ch; return; }
  if (!vlen) return;
  for (u32 i = 0; i < vlen; i++) line[i] = vline[i];
  line[vlen] = 0; vlen = 0; len = 0; to_vserial = 1; command(); flush_answer(); to_vserial = 0;
}
void kmain(void) {
  traps_init();
  outb(COM + 1, 0); outb(COM + 3, 3); outb(COM + 2, 7);
  run_cmdline();
  puts("tinyguest ready\n");
  for (;;) {
    counter++;
    vsock_poll();
    vserial_poll();
    if (!(inb(COM + 5) & 1)) { if (idle) __asm__ volatile("sti; hlt; cli"); continue; }
    char ch = inb(COM);
    if (ch == '\n' || ch == '\r') { line[len] = 0; if (len) command(); len = 0; }
    else if (len < sizeof line - 1) line[len++] = ch;
  }
}
