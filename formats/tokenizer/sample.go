package tokenizer

// Sample is a text that tokenizers can be compared on: many scripts, digits, blanks of
// all kinds, code, marks that combine, joiners, and what else splits words in one place
// and not in another.
const Sample = "The quick brown fox jumps over the lazy dog.\n" +
	"I'll say it's what we've got; they're sure I'd go, don't you? I'M, YOU'RE, WE'VE, HE'LL, SHE'D, IT'S\n" +
	"it\u2019s, don\u2019t: curly ones. 'round, 'tis, rock'n'roll, O'Neill's ''quoted'' 'S 'T 'LL\n" +
	"  two spaces,   three,    four,\ta tab,\t\ttwo tabs, \t mixed \t \n" +
	"a line that ends in spaces   \n" +
	"\n\n\nthree empty lines\r\nWindows\r\n\r\nold Mac\ralone\n" +
	" \n  \n   \n    \n\t\n \t\n" +
	"0 1 12 123 1234 12345 123456 1234567 12345678 3.14159 1,000,000.00 1e-5 0x1F 2nd 3rd 10% $99.95 €5 £1\n" +
	"12:30:45 2024-02-29 +49 (0)30 1234-567 192.168.0.1 v1.2.3-rc.4 1/2 3×4 5÷6 10⁻³ x² H₂O ½ ¾ Ⅷ ①②③\n" +
	"٠١٢٣٤٥٦٧٨٩ ०१२३४५६७८९ ๐๑๒๓ 零一二三四五 〇 ๙๙\n" +
	"func main() { fmt.Println(\"Hello, 世界\") } // done\n" +
	"\tif x == nil && y != 0 || !z {\n\t\treturn a[i]++ + --b // ???\n\t}\n" +
	"def f(x: int = 0, *args, **kw) -> str:\n    return f\"{x!r:>10}\"  # ok\n        deep = True\n" +
	"<div class=\"a b\" id='c'>&amp;&#39;</div><br/> <!-- no --> {{ .Name }} ${HOME}/bin C:\\Temp\\x.txt\n" +
	"SELECT * FROM t WHERE a >= 1 AND b <> 'x''y'; --;;;\n" +
	"https://example.org/path?q=1&r=%20a#top user.name+tag@example.co.uk #hash @at snake_case camelCase PascalCase SCREAMING_CASE kebab-case\n" +
	"!!! ??? ... …… -- --- —– ~~~ === *** ### $$$ %% ^^ && || // \\\\ :: ;; ,, `` \"\" '' () [] {} <> «» „“ ‚‘ 「」『』【】\n" +
	"Ça va? Où est l'été? L'œuvre naïve d'un garçon. ÀÉÎÕÜ àéîõü\n" +
	"Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. STRASSE Straße ẞ\n" +
	"El pingüino Wenceslao hizo kilómetros. ¿Qué? ¡Ñandú!\n" +
	"Příliš žluťoučký kůň úpěl ďábelské ódy. Zażółć gęślą jaźń.\n" +
	"Đây là tiếng Việt: một hai ba bốn năm. Nguyễn\n" +
	"İstanbul'da ılık bir gün. IĞDIR ığdır i̇ K Å ſ ﬁ ﬂ ﬆ ŉ ǆ ǅ Ǆ\n" +
	"Съешь же ещё этих мягких французских булок, да выпей чаю. ЁЖ нещо їжак ђак\n" +
	"Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. ΌΔΟΣ όδος σς Σ ᾳ\n" +
	"Բարև աշխարհ։ გამარჯობა მსოფლიო. ႠႡ\n" +
	"שלום עולם, מה שלומך? שָׁלוֹם\n" +
	"مرحبا بالعالم، كيف الحال؟ السَّلَامُ عَلَيْكُمْ ـــ ﷺ سلام\u200cعلیکم\n" +
	"नमस्ते दुनिया। क्षत्रिय ज्ञान हिन्दी स्त्री\n" +
	"বাংলা ভাষা। தமிழ் மொழி। తెలుగు ಕನ್ನಡ മലയാളം ਪੰਜਾਬੀ ગુજરાતી ଓଡ଼ିଆ සිංහල\n" +
	"สวัสดีชาวโลก ภาษาไทยไม่เว้นวรรค ພາສາລາວ\n" +
	"ភាសាខ្មែរ ពិសេស မြန်မာဘာသာ བོད་ཡིག ᠮᠣᠩᠭᠣᠯ\n" +
	"我想在公司工作1314151天～,你好,世界!这是“中文”。漢字仮名交じり文\n" +
	"日本語のテキスト、カタカナ・ひらがな。ﾊﾝｶｸ ＡＢＣ１２３ ゛゜ \u304b\u3099\u304d\u3099 ﾞ ー々〆\n" +
	"안녕하세요 세계. 각 \u1100\u1161\u11a8 가 한국어ㅋㅋㅋㅠㅠ\n" +
	"አማርኛ ሰላም። ᏣᎳᎩ ᐃᓄᒃᑎᑐᑦ ⴰⵎⴰⵣⵉⵖ\n" +
	"😀 😃😄 👍🏽 👩\u200d👩\u200d👧\u200d👦 🏳️\u200d🌈 🇩🇪🇫🇷 ❤️ ☺︎ 1️⃣ 🚀🚀🚀 (multi) ✅✗ 😶\u200d🌫️\n" +
	"é = e\u0301, ñ n\u0303, ö o\u0308, Å A\u030a, q\u0323\u0307 q\u0307\u0323, Z͑ͫ̓a̴l̶g̷o\n" +
	"zero\u200bwidth, non\u200cjoiner, join\u200der, word\u2060joiner, soft\u00adhyphen, \u200eltr\u200f, \ufeffmark\n" +
	"no\u00a0break, thin\u2009space, hair\u200aspace, em\u2003space, narrow\u202fspace, ideographic\u3000space, ogham\u1680mark, next\u0085line\n" +
	"line\u2028separator paragraph\u2029separator vertical\vtab form\ffeed\n" +
	"control \x01\x02\x1b[0m\x7f end, private \ue000\uf8ff, astral 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟘𝟙𝟚 𐍈 𠜎𠜱 🂡 \U000e0041\n" +
	"∀x∈ℝ: ∃y ≤ x² ⇒ ∑ᵢ aᵢ ≠ ∞ ∧ ¬p ± √2 ≈ 1.414 π µ μ Ω Ω ← → ↔ ░▒▓█ ┌─┐ ■□ ♠♣ ♯♭\n" +
	"<s> </s> <unk> <pad> [CLS] [SEP] [MASK] <|endoftext|> <|im_start|>user\nhi<|im_end|> <0x0A> ▁▁ Ġ Ċ ##ing @@ </w>\n" +
	"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa ----------------------------------------\n" +
	"supercalifragilisticexpialidocious Donaudampfschifffahrtsgesellschaftskapitän antidisestablishmentarianism\n" +
	"                                                                        far right\n" +
	"\u00bfmixed\u4e2d\u6587English123\u6df7\u5408 Ру\u0441\u0441кийlatin \u0e01a1\u0e02b2 a\u0301b\u0302c\u0303 x\u20dd end \n"
